"""Renders and scores a sample: all candidates in full, as each draft, and previewed after each number of steps.

What is measured goes into a file at once, a line a request, so that a calibration that was stopped goes on, and one that is asked
for more requests or other drafts renders only what is new.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.drafts import Draft
from configs.schema import Ranking
from configs.scorers import CLIP
from jobs.calibration.policies import FINAL, Kind, Sight, Trial, sight_of
from jobs.plan import PlanError, fingerprint_of
from jobs.planning import Sources
from manifests.requests import Request
from pipelines.passes import as_draft
from pipelines.results import Outcome, Scored
from pipelines.units import Placed, Unit

if TYPE_CHECKING:
    from concurrent.futures import Future

    from pipelines.engine import Engine
    from pipelines.results import Rendered
    from pipelines.scorers import Scorers

RANK = "rank"  # the name of what ranks, where it is not CLIP's score alone
IN_FLIGHT = 3  # requests; enough that the batch never empties

Judge = Callable[[Request, np.ndarray], float]
Stage = tuple[Kind, Draft]


class Notes:
    """The file that trials are kept in.

    Args:
        place: Of the file, which may be there.
        of: What the trials are a function of, but for the requests themselves.

    Raises:
        PlanError: There is something else.
    """

    def __init__(self, place: Path, of: Mapping[str, Any]):
        self._place, self._fingerprint = place, fingerprint_of(of)
        self._known: dict[str, dict[str, Any]] = {}
        if place.exists():
            self._read()
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._append({"calibration": self._fingerprint})

    def _read(self) -> None:
        content = self._place.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # the last line is torn where its writer was killed
        try:
            head, *rest = [json.loads(line) for line in whole.splitlines()]
            there = head["calibration"]
            for line in rest:
                self._take(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PlanError([f"{self._place}: not a file of trials; give another --trials"]) from None
        if there != self._fingerprint:
            raise PlanError(
                [f"{self._place}: trials of another manifest, config, model or version; give another --trials, or remove it"]
            )
        if whole != content:
            os.truncate(self._place, len(whole))

    def _take(self, line: Mapping[str, Any]) -> None:
        known = self._known.setdefault(line["id"], {"sights": {}, "scores": {}})
        known["sights"] |= {name: Sight(**sight) for name, sight in line["sights"].items()}
        known["scores"] |= line["scores"]

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._place.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def add(self, id: str, sights: Mapping[str, Sight], scores: Mapping[str, Sequence[float | None]]) -> None:
        line = {"id": id, "sights": {name: asdict(sight) for name, sight in sights.items()}, "scores": dict(scores)}
        self._append(line)
        self._take(line)

    def sights(self, id: str) -> set[str]:
        """In what ways a request was seen."""
        return set(self._known.get(id, {}).get("sights", ()))

    def trial(self, request: Request) -> Trial | None:
        """All that is known of a request; None where not even its finals are."""
        known = self._known.get(request.id)
        if known is None or FINAL not in known["sights"]:
            return None
        return Trial(request.id, request.keep, known["sights"], known["scores"])


def identity(sources: Sources) -> dict[str, Any]:
    """What trials are a function of: all that decides the bytes, but for the drafts that are to be found."""
    config = sources.config
    ranking = config.ranking.model_copy(update={"drafts": (), "drafts_stochastic": False})
    return {**sources.inputs, "config": config.model_copy(update={"ranking": ranking}).render_config()}


def observe(
    sources: Sources,
    sample: Sequence[Placed],
    stages: Sequence[Stage],
    notes: Notes,
    judges: Mapping[str, Judge] | None = None,
    progress: Callable[[int, int], None] = lambda done, all_: None,
) -> dict[str, str]:
    """Render and score what is not known yet of a sample, one engine on this machine's first GPU or its CPU.

    Args:
        stages: What candidates are rendered as besides in full.
        judges: What else says something of finals, by name; it does not rank.
        progress: Told of the requests seen, and of how many there are.

    Returns:
        By id, what the requests failed of that have no trial; and by the name of a sight, why nothing can be seen that way.

    Raises:
        ModelError: A model cannot be loaded.
    """
    ways: dict[str, Stage | None] = {FINAL: None, **{sight_of(*stage): stage for stage in stages}}
    left = [(placed, missing) for placed in sample if (missing := [w for w in ways if w not in notes.sights(placed.request.id)])]
    done, failed = len(sample) - len(left), dict[str, str]()
    progress(done, len(sample))
    if not left:
        return failed
    engine, scorers = _loaded(sources)
    for number, (placed, missing, outcomes) in enumerate(_rendered(engine, left, ways), 1):
        if broken := outcomes[missing.index(FINAL)].failure if FINAL in missing else None:
            failed[placed.request.id] = broken.message
        else:
            seen = _seen(placed.request, missing, outcomes, scorers, sources.config.ranking, judges or {})
            notes.add(placed.request.id, *seen)
            failed |= {way: outcome.failure.message for way, outcome in zip(missing, outcomes, strict=True) if outcome.failure}
        progress(done + number, len(sample))
    return failed


def _loaded(sources: Sources) -> "tuple[Engine, Scorers]":
    # torch takes seconds to import, which what is wrong with a config need not wait for.
    from pipelines.engine import Engine
    from pipelines.loading import device_here
    from pipelines.scorers import load_scorers

    config = sources.config
    engine = Engine(config.model, config.seed, sources.roots)
    return engine, load_scorers(config.ranking, device_here())


def _rendered(
    engine: "Engine", left: Sequence[tuple[Placed, list[str]]], ways: Mapping[str, Stage | None]
) -> Iterator[tuple[Placed, list[str], Sequence[Outcome]]]:
    """Each request with how it was to be seen and what came of it, a few requests ahead of what is taken."""
    waiting: deque[tuple[Placed, list[str], Future[Rendered]]] = deque()
    for number, (placed, missing) in enumerate(left):
        rows = tuple(_as_seen(placed, row, ways[way]) for row, way in enumerate(missing))
        waiting.append((placed, missing, engine.submit(Unit(0, number, rows))))
        if len(waiting) == IN_FLIGHT:
            yield _settled(waiting)
    while waiting:
        yield _settled(waiting)


def _settled(
    waiting: "deque[tuple[Placed, list[str], Future[Rendered]]]",
) -> tuple[Placed, list[str], Sequence[Outcome]]:
    placed, missing, rendered = waiting.popleft()
    return placed, missing, rendered.result().outcomes


def _as_seen(placed: Placed, row: int, stage: Stage | None) -> Placed:
    if stage is None:
        return replace(placed, row=row)
    kind, draft = stage
    if kind == "preview":
        return replace(placed, row=row, preview=draft.steps)
    return replace(placed, row=row, request=as_draft(placed.request, draft))


def _seen(
    request: Request,
    ways: Sequence[str],
    outcomes: Sequence[Outcome],
    scorers: "Scorers",
    ranking: Ranking,
    judges: Mapping[str, Judge],
) -> tuple[dict[str, Sight], dict[str, list[float | None]]]:
    """A request as it was seen in some ways, and what its finals score, if they are among them."""
    from pipelines.ranking import non_finite, rank_score

    shown = [(way, made) for way, outcome in zip(ways, outcomes, strict=True) for made in outcome.candidates]
    images = [made.pixels for _, made in shown if made.pixels is not None]
    given: Iterator[Scored] = iter(scorers.score([request.prompt] * len(images), images) if images else [])
    scored = [next(given) if made.pixels is not None else None for _, made in shown]
    fit = [one if one is not None and not non_finite(one, ranking) else None for one in scored]
    ranks = [None if one is None else rank_score(one, ranking) for one in fit]
    sights = {}
    for way, outcome in zip(ways, outcomes, strict=True):
        if outcome.failure is None:
            places = [place for place, (of, _) in enumerate(shown) if of == way]
            sights[way] = Sight([ranks[place] for place in places], [shown[place][1].evaluations for place in places])
    finals = [place for place, (way, _) in enumerate(shown) if way == FINAL]
    if not finals:
        return sights, {}
    scores: dict[str, list[float | None]] = {}
    if ranking.scorers:
        scores[RANK] = [ranks[place] for place in finals]
    scores[CLIP] = [None if (one := fit[place]) is None else one.score for place in finals]
    for scorer in ranking.scorers:
        scores[scorer.name] = [None if (one := fit[place]) is None else one.others[scorer.name] for place in finals]
    for name, judge in judges.items():
        pixels = [shown[place][1].pixels if fit[place] is not None else None for place in finals]
        scores[name] = [None if of is None else float(judge(request, of)) for of in pixels]
    return sights, scores
