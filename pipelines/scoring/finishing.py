"""Turns a rendered unit into the rows of its part: scored, ranked, the kept images encoded."""

import hashlib
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from promptmill.configs.columns import CLIP_SCORE, EMBEDDING
from promptmill.configs.schema import ImageFormat, Ranking
from promptmill.configs.scorers import Diversity
from promptmill.configs.stages import AnyStage
from promptmill.manifests.own_pictures import alone
from promptmill.manifests.requests import Request
from promptmill.pipelines.work.candidate_scores import Found, closed
from promptmill.pipelines.work.metadata_rows import (
    candidate_row,
    failed_request,
    map_note,
    provenance_of,
    scores_row,
    shared_row,
)
from promptmill.pipelines.work.passes import Course
from promptmill.pipelines.work.ranking import Look, broken_limit, contenders, decide, looking, non_finite, rank_score
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered, Scored
from promptmill.pipelines.work.stage_parts import LOSSLESS
from promptmill.pipelines.work.units import Placed, Unit
from promptmill.shards.bundles import encode_map, is_bundled, pack
from promptmill.shards.image_files import encode_image, pixel_sha256
from promptmill.shards.tables import FOUND, IMAGE

if TYPE_CHECKING:
    from promptmill.pipelines.scoring.scorers import Scorers


# Calls a function with each of some values, and returns what it returns in the order of the values.
Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Finished:
    """Holds a unit's rows, each with its `image` (the encoded file, or None), and the figures for its receipt.

    Attributes:
        rows: The rows; those of a slice are open: they have the column `FOUND`, and no candidate is chosen yet.
        scores: CLIP scores of all candidates that were rendered in full and scored.
        seconds: Seconds by stage, those of its generators too.
        rendering_s: Seconds among these that generators spent.
    """

    rows: list[dict[str, Any]]
    scores: list[float]
    seconds: dict[str, float] = field(default_factory=dict)
    rendering_s: float = 0.0


@dataclass(frozen=True)
class Waiting:
    """Holds the scored result of a pass that rendered in full, without pixels.

    Attributes:
        rendered: The outcomes of the pass; their candidates have no pixels.
        found: By row and candidate, the columns of candidates that became an image and were scored; with the encoded image where
            the candidate may be kept.
    """

    rendered: Rendered
    found: Mapping[tuple[int, int], Mapping[str, Any]]


@dataclass(frozen=True)
class Passed:
    """Holds the result of a pass, from which its course can be gone through again, without pixels.

    Attributes:
        made: The outcomes of the pass, and the columns that a pass in full has found for its candidates; none for drafts.
        draft: The number of the cascade's draft; None is in full.
        scores, looks: The arguments of `Course.after`.
    """

    made: Waiting
    draft: int | None
    scores: Mapping[tuple[int, int], float]
    looks: Mapping[tuple[int, int], Look]


@dataclass(frozen=True)
class Onward:
    """Holds the course of a unit that passes again, and the results of this pass that are needed later.

    Attributes:
        course: The course that the unit goes on with.
        waiting: The results of this pass for the unit's end; None for a draft.
        passed: All of this pass, where passes are durable; None where they are not.
    """

    course: Course
    waiting: Waiting | None = None
    passed: Passed | None = None


def finish(
    unit: Unit,
    rendered: Rendered,
    scorers: "Scorers",
    recipe: Recipe,
    earlier: Callable[[], Sequence[Waiting]] = lambda: (),
    images: Callable[[Collection[str]], Mapping[str, bytes]] = lambda keys: {},
    spread: Spread = map,
) -> Finished | Onward:
    """Score the candidates of a unit under their prompts, rank them within their requests, encode the kept ones.

    Args:
        unit: Whole, a slice, or with a course. For a slice and for a course that goes on, all images that may be kept are encoded.
        rendered: The result of the unit's latest pass.
        scorers: The loaded scorers.
        recipe: The constants of the run.
        earlier: Called once the course ends; returns the results of the earlier passes in full.
        images: Called once the course ends with the keys of kept candidates without an image among those results; returns their
            files.
        spread: Calls a function with each of some values, as `map` does, perhaps in several threads.

    Returns:
        The rows, or the course that the unit goes on with.
    """
    seconds, rendering_s = dict(rendered.seconds), sum(rendered.seconds.values())
    with _timed(seconds, "encode"):
        rendered, maps = _with_encoded_maps(rendered, spread)
    with _timed(seconds, "score"):
        scored = score(unit, rendered, scorers)
    course, here = unit.course, None
    if course is None or course.in_full:
        with _timed(seconds, "encode"):
            here = _looked_at(unit, rendered, scored, recipe, maps, spread)
    passes = [here] if here else []
    if course and unit.course:
        requests = {placed.row: placed.request for placed in unit.requests}
        counting = _counting(scored, recipe.config.ranking, course.in_full)
        looks = _looks(requests, rendered, scored, counting, course.diversity) if here else {}
        course = course.after(requests, rendered, counting, seconds, looks)
        if course.turns:
            if course.durable is None:
                return Onward(course, here)
            draft = next(turn.draft for turn in unit.course.turns.values())
            return Onward(course, here, Passed(here or Waiting(_without_pixels(rendered), {}), draft, counting, looks))
        seconds, rendering_s = dict(course.seconds), course.rendering_s
        passes = [*earlier(), *passes]
        outcomes = course.outcomes([one.rendered for one in passes])
    else:
        outcomes = tuple(outcome for one in passes for outcome in one.rendered.outcomes)
    found = {place: columns for one in passes for place, columns in one.found.items()}
    with _timed(seconds, "encode"):
        rows = [
            row
            for placed, outcome in zip(unit.requests, outcomes, strict=True)
            for row in _request_rows(unit, placed, outcome, found, recipe)
        ]
        if lacking := {row["key"]: row for row in rows if row["selected"] and row[IMAGE] is None}:
            for key, image in images(lacking.keys()).items():
                lacking[key][IMAGE] = image
    own = {placed.row for placed in unit.requests}
    scores = [columns[CLIP_SCORE] for (row, _), columns in found.items() if row in own]
    return Finished(rows, scores, seconds, rendering_s)


def _without_pixels(rendered: Rendered) -> Rendered:
    outcomes = (replace(one, candidates=tuple(replace(made, pixels=None) for made in one.candidates)) for one in rendered.outcomes)
    return replace(rendered, outcomes=tuple(outcomes))


def _with_encoded_maps(rendered: Rendered, spread: Spread) -> tuple[Rendered, dict[int, list[bytes]]]:
    """Return outcomes that say their control maps' hashes in place of the maps, and the maps' files by row."""
    pixels = [one for outcome in rendered.outcomes for one in outcome.maps]
    if not pixels:
        return rendered, {}
    files = iter(spread(encode_map, pixels))
    maps = {outcome.row: [next(files) for _ in outcome.maps] for outcome in rendered.outcomes}
    outcomes = (
        replace(one, maps=(), images={**one.images, **dict(itertools.starmap(map_note, enumerate(maps[one.row])))})
        for one in rendered.outcomes
    )
    return replace(rendered, outcomes=tuple(outcomes)), maps


def _looked_at(
    unit: Unit,
    rendered: Rendered,
    scored: Mapping[tuple[int, int], Scored],
    recipe: Recipe,
    maps: Mapping[int, Sequence[bytes]],
    spread: Spread,
) -> Waiting:
    """Return the result of a pass or a unit without its pixels: scores, hashes, and the encoded images that may be kept."""
    placed_at = {placed.row: placed for placed in unit.requests}
    ranking = recipe.config.ranking
    outcomes, looks, asked = [], dict[tuple[int, int], Found](), []
    for outcome in rendered.outcomes:
        placed, row = placed_at[outcome.row], outcome.row
        seen = [_finite(candidate, scored.get((row, candidate.index)), ranking) for candidate in outcome.candidates]
        outcomes.append(replace(outcome, candidates=tuple(replace(candidate, pixels=None) for candidate, _ in seen)))
        of = [one for _, one in seen]
        look = looking(of, [candidate.pixels for candidate, _ in seen], ranking)
        if unit.course or unit.span:
            before = unit.course.standings[row].finished.values() if unit.course else ()
            ahead = [score for score in before if score is not None]
            compared = kept = set(contenders(of, look, placed.request.keep, ranking, ahead))
        else:
            chosen = decide(of, look, placed.request.keep, ranking)
            kept = {place for place, choice in enumerate(chosen) if choice.kept}
            compared = kept | {place for place, choice in enumerate(chosen) if choice.rejected_for == "near_duplicate"}
        for place, (candidate, one) in enumerate(seen):
            if one is None or candidate.pixels is None:
                continue
            seen_as = look(place) if place in compared and ranking.diversity else None
            looks[row, candidate.index] = Found.of(one, seen_as)
            asked.append((placed, candidate, candidate.pixels, one, place in kept, outcome.images, maps.get(row, ()), recipe))
    columns = spread(lambda values: _columns(*values), asked)
    found = {at: {**its, FOUND: look} for (at, look), its in zip(looks.items(), columns, strict=True)}
    return Waiting(replace(rendered, outcomes=tuple(outcomes)), found)


def _columns(
    placed: Placed,
    candidate: Candidate,
    pixels: np.ndarray,
    scored: Scored,
    may_be_kept: bool,
    images: Mapping[str, str],
    maps: Sequence[bytes],
    recipe: Recipe,
) -> dict[str, Any]:
    """Return the columns that a scored candidate adds to its row before candidates are chosen."""
    config = recipe.config
    columns = {"status": "rejected", **scores_row(config.ranking, scored)}
    columns["pixel_sha256"] = pixel_sha256(pixels)
    # The size is that of the pixels, since some pipelines choose a size themselves.
    columns["height"], columns["width"] = pixels.shape[:2]
    if config.shards.embeddings == "all" or (config.shards.embeddings == "kept" and may_be_kept):
        columns[EMBEDDING] = scored.embedding.astype(np.float16)
    form = LOSSLESS if config.all_stages else config.shards.image_format
    return {**columns, **encoded(placed, candidate, pixels, images, maps, recipe, form)} if may_be_kept else columns


def _counting(scored: Mapping[tuple[int, int], Scored], ranking: Ranking, in_full: bool) -> dict[tuple[int, int], float]:
    """Return rank scores by (row, candidate). Omit non-finite scores and, in a pass in full, candidates that break a limit."""
    fit = {place: one for place, one in scored.items() if not non_finite(one, ranking)}
    return {place: rank_score(one, ranking) for place, one in fit.items() if not (in_full and broken_limit(one, ranking))}


def _looks(
    requests: Mapping[int, Request],
    rendered: Rendered,
    scored: Mapping[tuple[int, int], Scored],
    counting: Collection[tuple[int, int]],
    diversity: Diversity | None,
) -> dict[tuple[int, int], Look]:
    """Return the looks of candidates that count towards a request's end of growing, where only unlike ones count."""
    if diversity is None:
        return {}
    return {
        (outcome.row, made.index): Look.of(scored[outcome.row, made.index], made.pixels, diversity)
        for outcome in rendered.outcomes
        if requests[outcome.row].growing
        for made in outcome.candidates
        if made.pixels is not None and (outcome.row, made.index) in counting
    }


def score(unit: Unit, rendered: Rendered, scorers: "Scorers") -> dict[tuple[int, int], Scored]:
    """Return the scores of a unit's candidates that became an image, by row and candidate."""
    asked = {placed.row: placed.request.words for placed in unit.requests}
    prompts, images, places = [], [], []
    for outcome in rendered.outcomes:
        for candidate in outcome.candidates:
            if candidate.pixels is not None:
                prompts.append(asked[outcome.row])
                images.append(candidate.pixels)
                places.append((outcome.row, candidate.index))
    return dict(zip(places, scorers.score(prompts, images), strict=True)) if images else {}


def _request_rows(
    unit: Unit, placed: Placed, outcome: Outcome, found: Mapping[tuple[int, int], Mapping[str, Any]], recipe: Recipe
) -> Iterator[dict[str, Any]]:
    shard, row = unit.shard, outcome.row
    if outcome.failure:
        yield {**failed_request(recipe, shard, placed, outcome, outcome.failure), IMAGE: None}
        return
    # A slice spares no candidates: only requests that grow do.
    spared = 0 if unit.span else placed.request.candidates - len(outcome.candidates)
    shared = shared_row(recipe, shard, placed, outcome, spared)
    rows = [
        {**candidate_row(recipe, shared, shard, row, candidate), **found.get((row, candidate.index), {})}
        for candidate in outcome.candidates
    ]
    if not unit.span:
        yield from closed(rows, placed.request.keep, recipe.config)
        return
    for one in rows:
        yield {**one, FOUND: one[FOUND].packed(recipe.config.ranking)} if FOUND in one else one


def _finite(candidate: Candidate, scored: Scored | None, ranking: Ranking) -> tuple[Candidate, Scored | None]:
    """Return a candidate that has an image, and its scores; a failed candidate and None where a score is not finite."""
    if scored is None or candidate.pixels is None:
        return candidate, None
    wrong = non_finite(scored, ranking)
    return (replace(candidate, pixels=None, failure=Failure("non_finite_score", wrong)), None) if wrong else (candidate, scored)


def encoded(
    placed: Placed,
    candidate: Candidate,
    pixels: np.ndarray,
    images: Mapping[str, str | None],
    beside: Sequence[bytes],
    recipe: Recipe,
    form: ImageFormat,
    stages: Sequence[AnyStage] = (),
) -> dict[str, Any]:
    """Return an image's file in this format, with its provenance, its SHA-256 and its size, as columns.

    Args:
        placed, candidate, pixels: The image and what it was made of.
        images: SHA-256 of the request's image files, by column.
        beside: The files that lie beside the image, where the dataset has such files.
        recipe: The constants of the run.
        form: The format.
        stages: The stages that the image went through.
    """
    config = recipe.config
    request = alone(placed.request, candidate.index, candidate.seed)
    provenance = provenance_of(request, config, images, pixels.shape[:2], stages)
    image = encode_image(pixels, form, config.shards.quality, provenance)
    cell = pack(image, beside) if is_bundled(recipe.form.names) else image
    return {IMAGE: cell, "sha256": hashlib.sha256(image).hexdigest(), "bytes": len(image)}


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.monotonic() - started
