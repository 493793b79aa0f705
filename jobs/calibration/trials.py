"""Renders and scores a sample: all candidates in full, as each draft, and previewed after each number of steps.

Results go into a file at once, a line a request. So a calibration that was stopped goes on, and one that is asked for more requests
or other drafts renders only the new ones.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from promptmill.configs.drafts import Draft
from promptmill.configs.json_values import checked, parse_json
from promptmill.configs.schema import Config
from promptmill.configs.scorers import CLIP
from promptmill.configs.step_caches import StepCache
from promptmill.jobs.calibration.policies import FINAL, Kind, Sight, Trial, sight_of
from promptmill.jobs.planning.differences import differences
from promptmill.jobs.planning.plan import PlanError, fingerprint_of
from promptmill.jobs.planning.sources import Sources
from promptmill.manifests.requests import Request, to_json
from promptmill.pipelines.work.errors import FatalError, ModelError, is_out_of_memory
from promptmill.pipelines.work.lean_imports import for_compiling
from promptmill.pipelines.work.passes import as_draft
from promptmill.pipelines.work.results import Candidate, Outcome, Scored
from promptmill.pipelines.work.units import Placed, Unit

if TYPE_CHECKING:
    from concurrent.futures import Future

    from promptmill.pipelines.rendering.engine import Engine
    from promptmill.pipelines.scoring.scorers import Scorers
    from promptmill.pipelines.work.results import Rendered

RANK = "rank"  # the name of the rank score, where that is not CLIP's score alone
IN_FLIGHT = 2  # batches of candidates, about; enough that the denoiser never waits for a scorer

Judge = Callable[[Request, np.ndarray], float]
Stage = tuple[Kind, Draft | StepCache]


class Notes:
    """Keeps trials in a file.

    Args:
        place: The path of the file, which may exist.
        of: The inputs that trials depend on, apart from the requests themselves.

    Raises:
        PlanError: The file holds something else, or trials of other inputs.
    """

    def __init__(self, place: Path, of: Mapping[str, Any]):
        self._place, self._of, self._fingerprint = place, of, fingerprint_of(of)
        self._known: dict[str, dict[str, Any]] = {}
        if place.exists():
            self._read()
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._append({"calibration": self._fingerprint, "of": of})

    def _read(self) -> None:
        content = self._place.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # the last line is torn where its writer was killed
        try:
            head, *rest = [parse_json(line) for line in whole.splitlines()]
            there, of = head["calibration"], head.get("of", {})
            for line in rest:
                self._take(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PlanError([f"{self._place}: not a file of trials; give another --trials"]) from None
        if there != self._fingerprint:
            raise PlanError([f"{self._place}: {self._another(of)}; give another --trials, or remove it"])
        if whole != content:
            os.truncate(self._place, len(whole))

    def _another(self, of: Mapping[str, Any]) -> str:
        said = [f"{name}: {was}, {is_}" for name, was, is_ in differences(of, json.loads(json.dumps(self._of)))]
        rest = [f"and {len(said) - 1} more"] if len(said) > 1 else []
        # An older version did not write down the inputs.
        what = f": {', '.join(said[:1] + rest)}" if of and said else ""
        return f"trials of another config, model or version{what}"

    def _take(self, line: Mapping[str, Any]) -> None:
        known = self._known.setdefault(line["request"], {"sights": {}, "scores": {}})
        known["sights"] |= {name: checked(Sight(**sight)) for name, sight in line["sights"].items()}
        known["scores"] |= {name: [_number(score) for score in scores] for name, scores in line["scores"].items()}

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._place.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def add(self, placed: Placed, sights: Mapping[str, Sight], scores: Mapping[str, Sequence[float | None]]) -> None:
        seen = {name: asdict(sight) for name, sight in sights.items()}
        line = {"id": placed.request.id, "request": _hash(placed), "sights": seen, "scores": dict(scores)}
        self._append(line)
        self._take(line)

    def sights(self, placed: Placed) -> set[str]:
        """Return the names of the ways in which a request was rendered."""
        return set(self._known.get(_hash(placed), {}).get("sights", ()))

    def trial(self, placed: Placed) -> Trial | None:
        """Return the trial of a request; None where even its finals are missing."""
        known = self._known.get(_hash(placed))
        if known is None or FINAL not in known["sights"]:
            return None
        return Trial(placed.request.id, placed.request.keep, known["sights"], known["scores"])


def _number(score: Any) -> float | None:
    if score is None or (isinstance(score, int | float) and not isinstance(score, bool)):
        return score
    raise TypeError(f"a score is {type(score).__name__}")


def _hash(placed: Placed) -> str:
    """Return a fingerprint of a row's request and of its images."""
    return fingerprint_of({"request": to_json(placed.request), "images": dict(placed.images)})


def identity(sources: Sources) -> dict[str, Any]:
    """Return the inputs that trials depend on beside their requests: models, libraries, the render config without drafts."""
    ranking = sources.config.ranking.model_copy(update={"drafts": (), "drafts_stochastic": False})
    config = sources.config.model_copy(update={"ranking": ranking}).render_config()
    # Requests hold what they take from the defaults, and the form of shards does not change trials.
    return {**sources.inputs, "manifest": None, "config": {**config, "defaults": None, "shards": None}}


def observe(
    sources: Sources,
    sample: Sequence[Placed],
    stages: Sequence[Stage],
    notes: Notes,
    judges: Mapping[str, Judge] | None = None,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> dict[str, str]:
    """Render and score the missing trials of a sample, with one engine on this machine's first GPU or its CPU.

    Args:
        sources: The config, the manifest and the models.
        sample: The requests.
        stages: The stages to render candidates by, besides in full.
        notes: The file of trials, which takes the new ones.
        judges: Further judges of finals, by name; a judge does not rank.
        progress: Called with the number of requests rendered, and of all.

    Returns:
        By id or by the name of a sight, why there is no trial of a request, or why it could not be rendered that way.

    Raises:
        ModelError: A model cannot be loaded, or memory ran out.
    """
    ways: dict[str, Stage | None] = {FINAL: None, **{sight_of(*stage): stage for stage in stages}}
    left = [(placed, missing) for placed in sample if (missing := [w for w in ways if w not in notes.sights(placed)])]
    done, failed = len(sample) - len(left), dict[str, str]()
    progress(done, len(sample))
    if not left:
        return failed
    if any(_is_cache(stage) for stage in ways.values()):
        for_compiling()  # counting work imports it, and while a second thread does the engine would find half of it
    engine, scorers = _loaded(sources)
    try:
        found = _Seeing(sources.config, scorers, judges or {})
        ends = {id(placed): missing[-1] for placed, missing in left}
        for placed, way, outcome, last in _rendered(engine, left, ways, sources.config.model.batch):
            if outcome.failure:
                failed[placed.request.id if way == FINAL else way] = outcome.failure.message
                found.drop(way)
            else:
                found.take(placed.request, way, outcome.candidates, _share(engine) if _is_cache(ways[way]) else None)
            if last and way == ends[id(placed)]:
                sights, scores = found.leave()
                if sights:
                    notes.add(placed, sights, scores)
                done += 1
                progress(done, len(sample))
    except FatalError as error:
        raise ModelError(f"{sources.config.model.base}: {error}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError("memory ran out while scoring, beside the denoiser; set ranking.batch or model.batch lower") from None
    finally:
        engine.close()
    return failed


def _loaded(sources: Sources) -> "tuple[Engine, Scorers]":
    # torch takes seconds to import; an error in a config should not wait for that.
    from promptmill.pipelines.rendering.engine import Engine
    from promptmill.pipelines.rendering.loading import device_here
    from promptmill.pipelines.scoring.scorers import load_scorers

    config = sources.config
    scorers = load_scorers(config.ranking, device_here())
    return Engine(config.model, config.seed, sources.roots, prompts=config.prompts), scorers


def _rendered(
    engine: "Engine", left: Sequence[tuple[Placed, list[str]]], ways: Mapping[str, Stage | None], batch: int
) -> Iterator[tuple[Placed, str, Outcome, bool]]:
    """Yield each request in each way that it is to be rendered, slice after slice, and whether a slice is the last of its kind.

    About `IN_FLIGHT` batches of candidates are rendered ahead of the consumer.
    """
    waiting: deque[tuple[Placed, str, Unit, bool, Future[Rendered]]] = deque()
    under_way = 0
    for number, (placed, way) in enumerate((placed, way) for placed, missing in left for way in missing):
        whole = Unit(0, number, (_as_seen(placed, ways[way]),))
        slices = whole.slices(batch) or [whole]
        for unit in slices:
            waiting.append((placed, way, unit, unit is slices[-1], engine.submit(unit)))
            under_way += unit.candidates
            while under_way > IN_FLIGHT * batch:
                first, as_, done, last, rendered = waiting.popleft()
                under_way -= done.candidates
                yield first, as_, rendered.result().outcomes[0], last
    yield from ((first, as_, rendered.result().outcomes[0], last) for first, as_, _, last, rendered in waiting)


def _as_seen(placed: Placed, stage: Stage | None) -> Placed:
    if stage is None:
        return placed
    kind, draft = stage
    if isinstance(draft, StepCache):
        return replace(placed, cache=draft)
    return replace(placed, preview=draft.steps) if kind == "preview" else replace(placed, request=as_draft(placed.request, draft))


def _is_cache(stage: Stage | None) -> bool:
    return stage is not None and isinstance(stage[1], StepCache)


def _share(engine: "Engine") -> float:
    """Return the share of an evaluation's work that one takes which a step cache answers."""
    shortened = engine.path.shortened
    return shortened.share if shortened else 1.0


@dataclass
class _Seeing:
    """Collects the scores of one request, way after way and slice after slice; of its images only the scores stay."""

    config: Config
    scorers: "Scorers"
    judges: Mapping[str, Judge]
    sights: dict[str, Sight] = field(default_factory=dict)
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)

    def drop(self, way: str) -> None:
        """Drop the results of one way: a slice of the request has failed."""
        self.dropped.add(way)
        self.sights.pop(way, None)
        if way == FINAL:
            self.scores.clear()

    def take(self, request: Request, way: str, candidates: Sequence[Candidate], share: float | None = None) -> None:
        """Score the candidates of one way; `share` is given of those that a step cache made, whose scores are kept apart."""
        from promptmill.pipelines.work.ranking import non_finite, rank_score

        if way in self.dropped:
            return
        ranking = self.config.ranking
        images = [made.pixels for made in candidates if made.pixels is not None]
        given: Iterator[Scored] = iter(self.scorers.score([request.words] * len(images), images) if images else [])
        scored = [next(given) if made.pixels is not None else None for made in candidates]
        fit = [one if one is not None and not non_finite(one, ranking) else None for one in scored]
        ranks = [None if one is None else rank_score(one, ranking) for one in fit]
        before = self.sights.get(way, Sight([], []))
        price = [made.evaluations for made in candidates]
        seen = Sight([*before.ranks, *ranks], [*before.evaluations, *price])
        if share is not None:
            scores = {name: [*before.scores.get(name, ()), *some] for name, some in self._all(request, candidates, fit, ranks)}
            seen = replace(seen, cached=[*before.cached, *(made.cached for made in candidates)], share=share, scores=scores)
        self.sights[way] = seen
        if way == FINAL:
            for name, some in self._all(request, candidates, fit, ranks):
                self.scores.setdefault(name, []).extend(some)

    def _all(
        self,
        request: Request,
        candidates: Sequence[Candidate],
        fit: Sequence[Scored | None],
        ranks: Sequence[float | None],
    ) -> Iterator[tuple[str, list[float | None]]]:
        """Yield the scores of candidates by each scorer's and judge's name."""
        if self.config.ranking.scorers:
            yield RANK, list(ranks)
        yield CLIP, [None if one is None else one.score for one in fit]
        for scorer in self.config.ranking.scorers:
            yield scorer.name, [None if one is None else one.others[scorer.name] for one in fit]
        for name, judge in self.judges.items():
            pixels = (made.pixels if one is not None else None for made, one in zip(candidates, fit, strict=True))
            yield name, [None if of is None else float(judge(request, of)) for of in pixels]

    def leave(self) -> tuple[dict[str, Sight], dict[str, list[float | None]]]:
        """Return the results of the request, which is done, and begin anew."""
        seen, self.sights, self.scores, self.dropped = (self.sights, self.scores), {}, {}, set()
        return seen
