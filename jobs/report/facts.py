"""Computes the numbers of a report: requests and results, the scores, and the gain by ranking."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from promptmill.jobs.figures.ranking_gain import Bought, bought
from promptmill.jobs.figures.reading import SHOWN, Digest
from promptmill.jobs.figures.sampling import spread

BARS = 40  # of the histogram
BINS = 8  # of prompt lengths, at most


@dataclass(frozen=True)
class Spread:
    """Holds the distribution of some scores: their number, mean, and the quantiles at 10, 25, 50, 75 and 90 percent."""

    count: int
    mean: float
    quantiles: tuple[float, float, float, float, float]

    @classmethod
    def of(cls, scores: np.ndarray) -> "Spread | None":
        """Compute the distribution of finite scores; None where there are none."""
        if not len(scores):
            return None
        low, quarter, middle, three, high = np.quantile(scores.astype(np.float64), (0.1, 0.25, 0.5, 0.75, 0.9)).tolist()
        return cls(len(scores), float(scores.mean(dtype=np.float64)), (low, quarter, middle, three, high))


@dataclass(frozen=True)
class Scores:
    """Holds the scores of some requests' candidates: all of them, and the kept ones, if any were kept."""

    name: str
    requests: int
    all: Spread
    kept: Spread | None


@dataclass(frozen=True)
class Histogram:
    """Holds counts of scores between `low` and `high`, in bars of equal width: of all candidates and of the kept."""

    low: float
    high: float
    all: Sequence[int]
    kept: Sequence[int]


@dataclass(frozen=True)
class Facts:
    """Holds the numbers that a dataset's metadata gives.

    Attributes:
        requests: Requests that were looked at.
        scores: Scores of all candidates; None where nothing was scored.
        modes, lengths: Scores by mode, and by the prompt's length in characters.
        sizes, steps, schedulers: Number of rendered requests by each of these.
        truncated: Requests whose prompts the text encoder cut.
        evaluations: Evaluations of the denoiser, over all candidates.
        errors: Requests that failed as a whole, and single candidates, by code.
        best, worst, across, failed: Keys for the contact sheets.
    """

    requests: int = 0
    scores: Scores | None = None
    histogram: Histogram | None = None
    modes: Sequence[Scores] = ()
    lengths: Sequence[Scores] = ()
    bought: Bought | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    schedulers: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0
    evaluations: int = 0
    errors: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    best: Sequence[str] = ()
    worst: Sequence[str] = ()
    across: Sequence[str] = ()
    failed: Sequence[str] = ()


def facts_of(digests: Sequence[Digest]) -> Facts:
    """Compute the numbers over some shards, in their order."""
    if not digests:
        return Facts()
    offsets = np.cumsum([0, *(digest.requests for digest in digests)])
    request = np.concatenate([digest.request + offset for digest, offset in zip(digests, offsets, strict=False)])
    score = np.concatenate([digest.score for digest in digests])
    kept = np.concatenate([digest.kept for digest in digests])
    mode = np.concatenate([digest.mode for digest in digests])
    length = np.concatenate([digest.length for digest in digests])
    whole = _scores("all", score, kept, request, np.ones(len(score), bool))
    best = sorted((-score, key) for digest in digests for score, key in digest.best)
    worst = sorted((score, key) for digest in digests for score, key in digest.worst)
    sizes, steps, schedulers, errors = (
        _sum(getattr(d, name) for d in digests) for name in ("sizes", "steps", "schedulers", "errors")
    )
    return Facts(
        requests=int(offsets[-1]),
        scores=whole,
        histogram=_histogram(score, kept) if whole else None,
        modes=_by(score, kept, request, {name: mode == name for name in sorted(set(mode))}),
        lengths=_by(score, kept, request, dict(_bins(length, request))),
        bought=bought(request, score, kept),
        sizes=_most(sizes),
        steps=_most(steps),
        schedulers=_most(schedulers),
        truncated=sum(digest.truncated for digest in digests),
        evaluations=sum(digest.evaluations for digest in digests),
        errors={code: (errors[code, True], errors[code, False]) for code in sorted({code for code, _ in errors})},
        best=[key for _, key in best[:SHOWN]],
        worst=[key for _, key in worst[:SHOWN]],
        across=spread([key for digest in digests for key in digest.across], SHOWN),
        failed=list(_by_turns(digest.failed for digest in digests))[:SHOWN],
    )


def _sum(counters: Iterable[Counter]) -> Counter:
    whole: Counter = Counter()
    for counter in counters:
        whole.update(counter)
    return whole


def _most(counter: Counter) -> dict[str, int]:
    """Return counts with the commonest first, equals by name."""
    return {str(name): number for name, number in sorted(counter.items(), key=lambda item: (-item[1], str(item[0])))}


def _scores(name: str, score: np.ndarray, kept: np.ndarray, request: np.ndarray, which: np.ndarray) -> Scores | None:
    spread = Spread.of(score[which])
    return Scores(name, len(np.unique(request[which])), spread, Spread.of(score[which & kept])) if spread else None


def _by(score: np.ndarray, kept: np.ndarray, request: np.ndarray, groups: Mapping[str, np.ndarray]) -> list[Scores]:
    """Return the scores of groups of requests, each a (R,) bool; groups without a score are left out."""
    made = (_scores(name, score, kept, request, which[request]) for name, which in groups.items())
    return [scores for scores in made if scores]


def _bins(length: np.ndarray, request: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield bins of about as many scored requests each, named by the lengths in them."""
    scored = np.unique(request)
    if not len(scored):
        return
    lengths = length[scored]
    inner = np.quantile(lengths, np.linspace(0, 1, BINS + 1)[1:-1], method="nearest")
    ends = np.unique([*inner, lengths.max()])
    number = np.searchsorted(ends, length)
    for bin_ in range(len(ends)):
        there = lengths[np.searchsorted(ends, lengths) == bin_]
        if len(there):
            low, high = there.min(), there.max()
            yield (f"{low}–{high}" if low < high else f"{low}"), number == bin_


def _histogram(score: np.ndarray, kept: np.ndarray) -> Histogram:
    low, high = float(score.min()), float(score.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    all_, _ = np.histogram(score, BARS, (low, high))
    kept_, _ = np.histogram(score[kept], BARS, (low, high))
    return Histogram(low, high, all_.tolist(), kept_.tolist())


def _by_turns(failed: Iterable[Mapping[str, Sequence[str]]]) -> Iterator[str]:
    """Yield keys of failed rows, one of each error code by turns, so that the rare are seen beside the common."""
    by_code: dict[str, list[str]] = {}
    for some in failed:
        for code, keys in some.items():
            by_code.setdefault(code, []).extend(keys)
    for turn in range(SHOWN):
        for code in sorted(by_code):
            yield from by_code[code][turn : turn + 1]
