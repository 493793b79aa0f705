"""Plans the passes of a unit: drafts that narrow its candidates down, then the rest in full, then perhaps more.

A unit goes through generators and scorers once for each draft of the cascade and once for the finals. Where requests grow, that is
one round, and requests that have not enough good images yet begin another. The requests of a unit keep step: in a round drafts come
before finals, so that only images rendered in full have to wait for the unit's end, and only where requests grow.

A draft of more candidates than a generator renders at once takes several passes, and so do finals. The choice is made after the
last of these passes.

Where the config has stages, the chosen images go through these afterwards, and the course says through which one next.

All here is a function of requests, drafts and scores. So a unit may be cut, tried again, or begun anew: the same is rendered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from promptmill.configs.drafts import Draft, applied
from promptmill.configs.scorers import Diversity
from promptmill.configs.stages import StageOrCaptions
from promptmill.manifests.requests import Request
from promptmill.pipelines.work.ranking import Look, rank, told_apart
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered


@dataclass(frozen=True)
class Turn:
    """Holds the next candidates of a request to render, by their indices, and their draft of the cascade; None is in full.

    Attributes:
        behind: Candidates that follow in the same way, before anything is decided.
    """

    candidates: tuple[int, ...]
    draft: int | None = None
    behind: tuple[int, ...] = ()

    def next_part(self, most: int | None) -> "Turn":
        """Return the turn of the first candidates of those behind; `most` are rendered at once, or all where it is None."""
        return replace(self, candidates=self.behind[:most], behind=self.behind[len(self.behind[:most]) :])


@dataclass(frozen=True)
class Drafted:
    """Holds the results of a candidate's drafts.

    Attributes:
        scores: Scores by the cascade's drafts, from the first to the candidate's last; None for one passed over or failed.
        evaluations: Evaluations of the denoiser, in all of the drafts; `cached` of these were answered by the step cache.
        failure: The failure of the last draft, or None.
    """

    seed: int
    scores: tuple[float | None, ...] = ()
    evaluations: int = 0
    failure: Failure | None = None
    cached: int = 0


@dataclass(frozen=True)
class Standing:
    """Holds the state of a request between two passes.

    Attributes:
        turn: The next turn; None where the request is done.
        begun: How many of its candidates have been rendered in any way, once that turn and those behind it have.
        drafted: Its candidates that were drafted, by index.
        finished: The scores of candidates rendered in full, by index; None for one that failed.
        looks: The looks of those among them that are good enough to end its growing, where only unlike ones count.
        outcome: The outcome of its last pass, without candidates; None before the first.
        scored: The scores, by the turn's draft, of candidates that went before those of the turn.
    """

    turn: Turn | None
    begun: int
    drafted: Mapping[int, Drafted] = field(default_factory=dict)
    finished: Mapping[int, float | None] = field(default_factory=dict)
    looks: Mapping[int, Look] = field(default_factory=dict)
    outcome: Outcome | None = None
    scored: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Staged:
    """Holds the stage that the kept images of a unit go through next.

    Attributes:
        number: Counted from 0.
        stage: The stage.
        kept: The kept candidates by row, by their indices.
        part: The name of the part that has the images before the stage, and the rows.
    """

    number: int
    stage: StageOrCaptions
    kept: Mapping[int, tuple[int, ...]]
    part: str = ""


@dataclass(frozen=True)
class Course:
    """Holds the states of the requests of a unit, by row.

    Attributes:
        drafts: The cascade.
        diversity: When two images are nearly the same, of which a request that grows counts one.
        seconds: Seconds that the passes so far took, by stage.
        rendering_s: Seconds among these that generators spent.
        most: How many candidates of each request a pass renders at most, by row; all of the turn for a row without an entry.
        durable: How many passes are behind the only request, each durable by a part of its own; None where passes have no parts.
        staged: The stage to go through next, once the images are chosen.
    """

    drafts: tuple[Draft, ...]
    standings: Mapping[int, Standing]
    diversity: Diversity | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    rendering_s: float = 0.0
    most: Mapping[int, int] = field(default_factory=dict)
    durable: int | None = None
    staged: Staged | None = None

    @property
    def turns(self) -> dict[int, Turn]:
        """Return the turns of the next pass, by row; none once all is done."""
        left = {row: standing.turn for row, standing in self.standings.items() if standing.turn}
        stage = min((self._stage(turn) for turn in left.values()), default=None)
        return {row: turn for row, turn in left.items() if self._stage(turn) == stage}

    def _stage(self, turn: Turn) -> int:
        return len(self.drafts) if turn.draft is None else turn.draft

    @property
    def in_full(self) -> bool:
        """Return whether the next pass renders in full, rather than drafts or a stage."""
        return any(turn.draft is None for turn in self.turns.values())

    @property
    def begun(self) -> bool:
        """Return whether a pass is behind any of the requests."""
        return any(standing.outcome for standing in self.standings.values())

    def of(self, row: int) -> "Course":
        """Return the course of one request alone."""
        staged = self.staged and replace(self.staged, kept={row: self.staged.kept.get(row, ())})
        return replace(self, standings={row: self.standings[row]}, staged=staged)

    def after(
        self,
        requests: Mapping[int, Request],
        rendered: Rendered,
        scores: Mapping[tuple[int, int], float],
        seconds: Mapping[str, float],
        looks: Mapping[tuple[int, int], Look] = MappingProxyType({}),
    ) -> "Course":
        """Return the course after a pass.

        Args:
            requests: By row.
            rendered: The result of the pass.
            scores: By row and candidate; of candidates that became an image.
            seconds: Seconds that the pass took, by stage.
            looks: By row and candidate; where there is diversity, of candidates rendered in full for requests that grow.
        """
        standings = dict(self.standings)
        for outcome in rendered.outcomes:
            own = {made.index: scores.get((outcome.row, made.index)) for made in outcome.candidates}
            seen = {index: look for (row, index), look in looks.items() if row == outcome.row}
            standings[outcome.row] = self._after(requests[outcome.row], standings[outcome.row], outcome, own, seen)
        spent = {stage: self.seconds.get(stage, 0.0) + seconds.get(stage, 0.0) for stage in {**self.seconds, **seconds}}
        rendering_s = self.rendering_s + sum(rendered.seconds.values())
        durable = None if self.durable is None else self.durable + 1
        return replace(self, standings=standings, seconds=spent, rendering_s=rendering_s, durable=durable)

    def _after(
        self, request: Request, before: Standing, outcome: Outcome, scores: Mapping[int, float | None], looks: Mapping[int, Look]
    ) -> Standing:
        assert before.turn is not None
        stage = before.turn.draft
        standing = replace(before, turn=None, outcome=replace(outcome, candidates=()))
        if outcome.failure:
            return standing
        most = self.most.get(outcome.row)
        rest = before.turn.next_part(most) if before.turn.behind else None
        if stage is None:
            standing = replace(standing, finished={**before.finished, **scores}, looks={**before.looks, **looks})
            return replace(standing, turn=rest) if rest else self._grown(request, standing, most)
        drafted = {made.index: _drafted(before.drafted.get(made.index), stage, made, scores) for made in outcome.candidates}
        scores = {**before.scored, **scores}
        standing = replace(standing, drafted={**before.drafted, **drafted}, scored=scores if rest else {})
        if rest:
            return replace(standing, turn=rest)
        living = best(scores, self.drafts[stage].keep)
        if not living:
            return self._grown(request, standing, most)
        return replace(standing, turn=_next_turn(living, self.drafts, stage + 1, most))

    def _grown(self, request: Request, standing: Standing, most: int | None) -> Standing:
        """Return the state after a round, with the next round as its turn where one is needed."""
        growing, begun = request.growing, standing.begun
        if growing is None or begun >= request.candidates:
            return replace(standing, looks={})
        reached = {i: score for i, score in standing.finished.items() if score is not None and score >= growing.until_score}
        best_first = sorted(reached, key=lambda index: (-reached[index], index))
        seen = told_apart(best_first, standing.looks.__getitem__, request.keep, self.diversity)
        if sum(twin is None for twin in seen.values()) >= request.keep:
            return replace(standing, looks={})
        standing = replace(standing, looks={index: look for index, look in standing.looks.items() if index in reached})
        more = min(begun + growing.start, request.candidates)
        return replace(standing, turn=_next_turn(tuple(range(begun, more)), self.drafts, 0, most), begun=more)

    def outcomes(self, passes: Sequence[Rendered]) -> tuple[Outcome, ...]:
        """Return the outcomes of the requests, once all is done: every candidate that was begun, at its full price.

        Args:
            passes: The passes that rendered in full, in any order.
        """
        made = {(outcome.row, one.index): one for rendered in passes for outcome in rendered.outcomes for one in outcome.candidates}
        return tuple(self._outcome(row, standing, made) for row, standing in self.standings.items())

    def _outcome(self, row: int, standing: Standing, made: Mapping[tuple[int, int], Candidate]) -> Outcome:
        outcome = standing.outcome
        assert outcome is not None and standing.turn is None
        if outcome.failure:
            return outcome
        candidates = []
        for index in range(standing.begun):
            drafted, final = standing.drafted.get(index), made.get((row, index))
            if drafted is None:
                assert final is not None
                candidates.append(final)
            elif final is None:
                drafts = drafted.evaluations, drafted.failure, drafted.scores, drafted.cached
                candidates.append(Candidate(index, drafted.seed, None, *drafts))
            else:
                price, cached = drafted.evaluations + final.evaluations, drafted.cached + final.cached
                candidates.append(replace(final, evaluations=price, cached=cached, draft_scores=drafted.scores))
        return replace(outcome, candidates=tuple(candidates))


def begin(
    requests: Mapping[int, Request],
    drafts: Sequence[Draft],
    diversity: Diversity | None = None,
    at_once: Callable[[Request], int] | None = None,
    stages: bool = False,
) -> Course | None:
    """Return the course of requests, by row, before their first pass; None where all are rendered in full, and that is all.

    Args:
        requests: By row.
        drafts: The cascade.
        diversity: As `Course` has it.
        at_once: Returns how many candidates of a request a pass renders at most; None renders all of a turn.
        stages: Whether kept images go through stages.
    """
    if not stages and not any(request.growing or applied(drafts, request.candidates) for request in requests.values()):
        return None
    drafts = tuple(drafts)
    first = {row: tuple(range(request.at_a_time)) for row, request in requests.items()}
    most = {row: at_once(request) for row, request in requests.items()} if at_once else {}
    standings = {row: Standing(_next_turn(some, drafts, 0, most.get(row)), len(some)) for row, some in first.items()}
    return Course(drafts, standings, diversity, most=most)


def best(scores: Mapping[int, float | None], keep: int) -> tuple[int, ...]:
    """Return the candidates that go on after a draft, by their indices: the best by its scores, of equals the first."""
    indices = sorted(scores)
    places = zip(indices, rank([scores[index] for index in indices]), strict=True)
    return tuple(index for index, place in places if place is not None and place <= keep)


def as_draft(request: Request, draft: Draft) -> Request:
    """Return a draft of a request as a request: the same but for its steps and perhaps its sampler."""
    return replace(request, steps=draft.steps, scheduler=draft.scheduler or request.scheduler)


def _next_turn(living: tuple[int, ...], drafts: Sequence[Draft], stage: int, most: int | None) -> Turn:
    draft = next((number for number in applied(drafts, len(living)) if number >= stage), None)
    return Turn((), draft, living).next_part(most)


def _drafted(before: Drafted | None, stage: int, made: Candidate, scores: Mapping[int, float | None]) -> Drafted:
    scored, price, cached = (before.scores, before.evaluations, before.cached) if before else ((), 0, 0)
    passed_over = (None,) * (stage - len(scored))
    seen = (*scored, *passed_over, scores[made.index])
    return Drafted(made.seed, seen, price + made.evaluations, made.failure, cached + made.cached)
