"""Lists the policies that a calibration tries (cascades of drafts, and of previews for comparison), and applies them to trials."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from math import comb
from typing import Literal

from promptmill.configs.drafts import Draft, applied, in_words, misfits
from promptmill.configs.step_caches import StepCache
from promptmill.jobs.calibration.sample import Shape
from promptmill.pipelines.work.passes import best

Kind = Literal["draft", "preview", "cache"]
FINAL = "final"
SHARES = (0.15, 0.2, 0.3, 0.4, 0.5)  # of the finals' steps, where no option says which drafts to try
MOST = 5_000  # cascades
DEEPEST = 2  # drafts of a cascade; no measurement showed a third that was worth its price


@dataclass(frozen=True)
class Policy:
    """Holds a cascade, or a step cache, that might be run.

    Attributes:
        kind: The kind of its stages. After a preview, the candidates that go on are rendered on from there; after a draft, from the
            beginning. With a cache all candidates are rendered, by it.
        cache: The step cache, of that kind alone.
    """

    kind: Kind
    stages: tuple[Draft, ...]
    cache: StepCache | None = None

    def __str__(self) -> str:
        if self.cache:
            return str(self.cache)
        words = in_words(self.stages)
        return words if self.kind == "draft" else words.replace(" steps", " of the steps")


@dataclass(frozen=True)
class Sight:
    """Holds all candidates of a request, rendered in one way.

    Attributes:
        ranks: The rank score of each candidate; None for one that failed.
        evaluations: Evaluations of the denoiser for each candidate.
        cached: How many of these a step cache answered; empty for none.
        share: The share of an evaluation's work that such a one takes.
        scores: With a step cache the scores of the images by each scorer's name, as `Trial` has those of the finals.
    """

    ranks: Sequence[float | None]
    evaluations: Sequence[int]
    cached: Sequence[int] = ()
    share: float = 1.0
    scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)

    @property
    def prices(self) -> Sequence[float]:
        """Return the price of each candidate, in evaluations of all blocks."""
        if not self.cached:
            return self.evaluations
        return [all_ - some * (1 - self.share) for all_, some in zip(self.evaluations, self.cached, strict=True)]


@dataclass(frozen=True)
class Trial:
    """Holds one request, rendered in all ways.

    Attributes:
        keep: How many of its candidates the request keeps.
        sights: By name: FINAL, and the names of `sight_of`.
        scores: Scores of the request's finals by each scorer's name; None for a candidate that failed.
    """

    id: str
    keep: int
    sights: Mapping[str, Sight]
    scores: Mapping[str, Sequence[float | None]]

    @property
    def candidates(self) -> int:
        return len(self.sights[FINAL].ranks)


def sight_of(kind: Kind, stage: Draft | StepCache) -> str:
    """Return the name of the way in which a stage renders candidates: draft 6 euler, preview 6, cache every 2 from 0.25."""
    if isinstance(stage, StepCache):
        return f"{kind} {stage}"
    return f"{kind} {stage.steps}{f' {stage.scheduler}' if stage.scheduler else ''}"


def usual_steps(shapes: Iterable[Shape]) -> list[int]:
    """Return the numbers of steps that are worth trying for drafts, by the shortest finals among these shapes."""
    shortest = min(shape.steps for shape in shapes)
    return sorted({max(1, round(share * shortest)) for share in SHARES} - {shortest})


def policies(kind: Kind, steps: Sequence[int], shapes: Sequence[Shape], schedulers: Sequence[str | None] = (None,)) -> list[Policy]:
    """Return the cascades of up to DEEPEST stages that requests of every one of these shapes could go through.

    Args:
        kind: The kind of the stages.
        steps: Numbers of steps of the stages, ascending.
        shapes: The shapes of requests, that of the defaults last.
        schedulers: Schedulers of drafts; None is the request's own.

    Raises:
        ValueError: No cascade fits, or too many do; the message says what stands in the way.
    """
    keepable = _keeps(shapes)
    depths = range(1, DEEPEST + 1)
    if len(schedulers) * sum(comb(len(steps), depth) * comb(len(keepable), depth) for depth in depths) > MOST:
        raise ValueError(f"these make more than {MOST:,}; name fewer steps")
    found, wrong = [], f"they leave nobody out of defaults.candidates {shapes[-1].candidates} that is not kept"
    for depth in depths:
        for chosen, keeps in product(combinations(steps, depth), combinations(keepable, depth)):
            for scheduler in schedulers:
                stages = tuple(Draft(steps=n, keep=k, scheduler=scheduler) for n, k in zip(chosen, keeps, strict=True))
                misfit = next((said for shape in shapes for said in _misfits(stages, shape)), None)
                if misfit is None:
                    found.append(Policy(kind, stages))
                wrong = misfit or wrong
    if not found:
        raise ValueError(wrong)
    return found


def _misfits(stages: Sequence[Draft], shape: Shape) -> list[str]:
    return misfits(
        stages,
        True,
        candidates=shape.candidates,
        keep=shape.keep,
        steps=shape.steps,
        strength=shape.strength,
        scheduler=shape.scheduler,
    )


def _keeps(shapes: Sequence[Shape]) -> list[int]:
    """Return the numbers of candidates that may go on, descending: those of 1, 2, 3, 4, 6, 8, 12, 16, … that are enough to keep.

    A config wants its first draft to leave out at least one of its defaults' candidates, whose shape is the last.
    """
    fewest, most = max(shape.keep for shape in shapes), shapes[-1].candidates
    ladder = [1, 2, 3, *(number for power in range(2, 14) for number in (2**power, 3 * 2 ** (power - 1)))]
    return sorted({keep for keep in ladder if fewest <= keep < most}, reverse=True)


def outcome(trial: Trial, policy: Policy | None) -> tuple[tuple[int, ...], float]:
    """Return the candidates of a request that a policy keeps, and the evaluations of the denoiser that this takes.

    An evaluation that a step cache answers is a part of one.

    Args:
        trial: The request.
        policy: The cascade; None renders all in full.
    """
    final = trial.sights[FINAL]
    living: tuple[int, ...] = tuple(range(trial.candidates))
    if policy and policy.cache:
        cached = trial.sights[sight_of(policy.kind, policy.cache)]
        return best(dict(enumerate(cached.ranks)), trial.keep), sum(cached.prices)
    price, behind = 0, dict.fromkeys(living, 0)
    for stage in policy.stages if policy else ():
        if not applied([stage], len(living)):
            continue
        sight = trial.sights[sight_of(policy.kind, stage)] if policy else final
        price += sum(sight.evaluations[index] - behind[index] for index in living)
        if policy and policy.kind == "preview":
            behind = {index: sight.evaluations[index] for index in living}
        living = best({index: sight.ranks[index] for index in living}, stage.keep)
    price += sum(final.evaluations[index] - behind[index] for index in living)
    return best({index: final.ranks[index] for index in living}, trial.keep), price


def sights_of(some: Iterable[Policy]) -> Iterator[tuple[Kind, Draft | StepCache]]:
    """Yield each way of rendering that these policies need, once."""
    seen = set()
    for policy in some:
        for stage in (policy.cache,) if policy.cache else policy.stages:
            if (name := sight_of(policy.kind, stage)) not in seen:
                seen.add(name)
                yield policy.kind, stage
