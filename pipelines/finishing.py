"""Turns a rendered unit into the rows of its part: scored, ranked, the kept images encoded."""

import hashlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema import Ranking
from configs.scorers import Diversity
from manifests.requests import Request
from pipelines.passes import Course
from pipelines.ranking import Look, broken_limit, choose, non_finite, rank_score
from pipelines.results import Candidate, Failure, Outcome, Rendered, Scored
from pipelines.rows import Facts, candidate_row, failed_request, provenance_of, ranking_row, request_row
from pipelines.units import Placed, Unit
from shards.images import encode_image, pixel_sha256
from shards.tables import DRAFT_SCORES, SPARED

if TYPE_CHECKING:
    from pipelines.scorers import Scorers


@dataclass(frozen=True)
class Finished:
    """A unit's rows, each with its `image` (the encoded file, or None), and what to tell of them.

    Attributes:
        scores: CLIP's, of all candidates that were rendered in full and scored.
        seconds: By stage, those of its generators too.
        rendering_s: Of these, those that generators spent.
    """

    rows: list[dict[str, Any]]
    scores: list[float]
    seconds: dict[str, float] = field(default_factory=dict)
    rendering_s: float = 0.0


def finish(unit: Unit, rendered: Rendered, scorers: "Scorers", facts: Facts, earlier: Sequence[Rendered] = ()) -> Finished | Course:
    """Score all candidates of a unit under their prompts, rank them within their requests, encode those kept.

    Args:
        unit: Where its course is not at an end after this, nothing is encoded yet.
        rendered: What its latest pass made.
        earlier: What those passes made before that rendered in full.

    Returns:
        The rows, or the course that the unit goes on with.
    """
    seconds, rendering_s = dict(rendered.seconds), sum(rendered.seconds.values())
    with _timed(seconds, "score"):
        scored = _score(unit, [rendered], scorers)
    outcomes: Sequence[Outcome] = rendered.outcomes
    if unit.course:
        requests = {placed.row: placed.request for placed in unit.requests}
        counting = _counting(scored, facts.config.ranking, unit.course.in_full)
        looks = _looks(requests, rendered, scored, counting, unit.course.diversity) if unit.course.in_full else {}
        course = unit.course.after(requests, rendered, counting, seconds, looks)
        if course.turns:
            return course
        # Scored again rather than kept through all passes, embeddings and all: it is the same, and takes little.
        seconds, rendering_s = dict(course.seconds), course.rendering_s
        with _timed(seconds, "score"):
            scored = {**_score(unit, earlier, scorers), **scored}
        outcomes = course.outcomes([*earlier, *([rendered] if unit.course.in_full else [])])
    with _timed(seconds, "encode"):
        rows = [
            row
            for placed, outcome in zip(unit.requests, outcomes, strict=True)
            for row in _request_rows(unit.shard, placed, outcome, scored, facts)
        ]
    return Finished(rows, [one.score for one in scored.values()], seconds, rendering_s)


def _counting(scored: Mapping[tuple[int, int], Scored], ranking: Ranking, in_full: bool) -> dict[tuple[int, int], float]:
    """What ranks the candidates of a pass; without those that have no such number, nor, in full, those that may not be kept."""
    fit = {place: one for place, one in scored.items() if not non_finite(one, ranking)}
    return {place: rank_score(one, ranking) for place, one in fit.items() if not (in_full and broken_limit(one, ranking))}


def _looks(
    requests: Mapping[int, Request],
    rendered: Rendered,
    scored: Mapping[tuple[int, int], Scored],
    counting: Collection[tuple[int, int]],
    diversity: Diversity | None,
) -> dict[tuple[int, int], Look]:
    """How those look that count towards a request's end of growing, where only unlike ones do."""
    if diversity is None:
        return {}
    return {
        (outcome.row, made.index): Look.of(scored[outcome.row, made.index], made.pixels, diversity)
        for outcome in rendered.outcomes
        if requests[outcome.row].growing
        for made in outcome.candidates
        if made.pixels is not None and (outcome.row, made.index) in counting
    }


def _score(unit: Unit, passes: Sequence[Rendered], scorers: "Scorers") -> dict[tuple[int, int], Scored]:
    asked = {placed.row: placed.request.prompt for placed in unit.requests}
    prompts, images, places = [], [], []
    for outcome in (outcome for rendered in passes for outcome in rendered.outcomes if outcome.row in asked):
        for candidate in outcome.candidates:
            if candidate.pixels is not None:
                prompts.append(asked[outcome.row])
                images.append(candidate.pixels)
                places.append((outcome.row, candidate.index))
    return dict(zip(places, scorers.score(prompts, images), strict=True)) if images else {}


def _request_rows(
    shard: int, placed: Placed, outcome: Outcome, scored: Mapping[tuple[int, int], Scored], facts: Facts
) -> Iterator[dict[str, Any]]:
    if outcome.failure:
        yield {**failed_request(facts, shard, placed, outcome, outcome.failure), "image": None}
        return
    request, config = placed.request, facts.config
    seen = [_finite(candidate, scored.get((outcome.row, candidate.index)), config.ranking) for candidate in outcome.candidates]
    of = [one for _, one in seen]
    chosen = choose(of, [candidate.pixels for candidate, _ in seen], request.keep, config.ranking)
    shared = request_row(facts, shard, placed, outcome)
    if facts.growing:
        shared[SPARED] = request.candidates - len(outcome.candidates)
    for (candidate, one), place in zip(seen, chosen, strict=True):
        row = {**candidate_row(shared, shard, outcome.row, candidate), "rank": place.rank, "image": None}
        if config.ranking.drafts:
            row[DRAFT_SCORES] = list(candidate.draft_scores)
        if one is not None and candidate.pixels is not None:
            # Of the pixels, since some pipelines choose a size themselves.
            row["height"], row["width"] = candidate.pixels.shape[:2]
            row["clip_score"] = one.score
            row |= ranking_row(config.ranking, one, place)
            row["pixel_sha256"] = pixel_sha256(candidate.pixels)
            if config.shards.embeddings == "all" or (config.shards.embeddings == "kept" and place.kept):
                row["clip_embedding"] = one.embedding.astype(np.float16)
            if place.kept:
                row |= _encoded(placed, candidate, candidate.pixels, facts)
        yield row


def _finite(candidate: Candidate, scored: Scored | None, ranking: Ranking) -> tuple[Candidate, Scored | None]:
    """A candidate that has an image, and its scores; failed, and without any, where one of them is no number that could rank."""
    if scored is None or candidate.pixels is None:
        return candidate, None
    wrong = non_finite(scored, ranking)
    return (replace(candidate, pixels=None, failure=Failure("non_finite_score", wrong)), None) if wrong else (candidate, scored)


def _encoded(placed: Placed, candidate: Candidate, pixels: np.ndarray, facts: Facts) -> dict[str, Any]:
    request, config = placed.request, facts.config
    provenance = provenance_of(request, candidate.seed, config.model.base, pixels.shape[:2])
    image = encode_image(pixels, config.shards.image_format, config.shards.quality, provenance)
    return {"selected": True, "status": "kept", "image": image, "sha256": hashlib.sha256(image).hexdigest(), "bytes": len(image)}


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started
