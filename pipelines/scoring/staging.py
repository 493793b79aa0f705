"""Finishes units whose kept images go through stages: each stage's image is scored again, and takes the place of the one before."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from promptmill.configs.columns import CACHED, CAPTION, CLIP_SCORE, EMBEDDING, STAGE0, STAGES
from promptmill.configs.language_models import Captions
from promptmill.configs.stages import StageOrCaptions
from promptmill.pipelines.scoring.durable_passes import finish_durably, resumed
from promptmill.pipelines.scoring.finishing import Finished, Onward, Spread, Waiting, encoded, score
from promptmill.pipelines.work.metadata_rows import hashes_in, ranking_columns
from promptmill.pipelines.work.ranking import non_finite, rank_score
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Candidate, Failure, Rendered, Scored
from promptmill.pipelines.work.stage_parts import LOSSLESS, begin_stage, decoded, rows_before, stage_begun, stage_error
from promptmill.pipelines.work.units import Placed, Unit, parse_key
from promptmill.shards.bundles import entry, unpacked
from promptmill.shards.image_files import pixel_sha256
from promptmill.shards.parts import PartError, part_name
from promptmill.shards.storage import delete, join, staying
from promptmill.shards.tables import IMAGE, ranks_by

if TYPE_CHECKING:
    from promptmill.pipelines.scoring.scorers import Scorers

ENTRY = ("stage", "width", "height", "score", "found", "evaluations")  # of the column of stages
RENDERED = "rendered"  # the first entry of the column of stages: the image as it was chosen


def finish_in_stages(
    unit: Unit,
    rendered: Rendered,
    scorers: "Scorers",
    recipe: Recipe,
    earlier: "Callable[[], Sequence[Waiting]]",
    spread: Spread = map,
) -> Finished | Onward:
    """Finish a unit, a pass of it, or a stage; where a stage follows, what it begins with is durable once the call returns.

    Args:
        unit, rendered, scorers, recipe, earlier, spread: As in `finish_durably`.

    Returns:
        As `finish_durably`. The course that a unit goes on with has the stage that follows.

    Raises:
        PartError: The part of an earlier pass or stage is broken or gone.
        StorageError: The output cannot be read or written.
    """
    course = unit.course
    staged = course.staged if course else None
    if staged is None:
        finished = finish_durably(unit, rendered, scorers, recipe, earlier, spread)
    else:
        finished = _after_stage(unit, rendered, scorers, recipe, spread)
    if not recipe.config.all_stages or isinstance(finished, Onward):
        return finished
    assert course is not None
    with staying(recipe.output):
        following = begin_stage(recipe, unit, staged.number + 1 if staged else 0, finished.rows)
    if following is None:
        return finished
    return Onward(replace(course, staged=following, seconds=finished.seconds, rendering_s=finished.rendering_s))


def resumed_at_stage(unit: Unit, parts: Collection[str], recipe: Recipe) -> Unit:
    """Return a unit at the last stage that a part is there for, or behind its last durable pass, or as it is.

    Args:
        unit: The unit as a run begins it.
        parts: The names of the parts that are there.
        recipe: The constants of the run.

    Raises:
        StorageError: The output cannot be read or written.
    """
    for number in reversed(range(len(recipe.config.all_stages))):
        if (name := part_name(unit.stage_name(number))) in parts:
            assert unit.course is not None
            try:
                return replace(unit, course=replace(unit.course, staged=stage_begun(recipe, unit, number)))
            except (PartError, FileNotFoundError):
                delete(join(recipe.output, "parts", name))
    return resumed(unit, parts, recipe)


def _after_stage(unit: Unit, rendered: Rendered, scorers: "Scorers", recipe: Recipe, spread: Spread) -> Finished:
    """Return the rows of a unit after a stage: those of kept images have the stage's images, or its failures."""
    course = unit.course
    assert course is not None and course.staged is not None
    seconds = {stage: course.seconds.get(stage, 0.0) + spent for stage, spent in rendered.seconds.items()}
    seconds = {**course.seconds, **seconds}
    started = time.monotonic()
    scored = score(unit, rendered, scorers)
    scoring_s = time.monotonic() - started
    requests = {placed.row: placed for placed in unit.requests}
    made = {(outcome.row, one.index): one for outcome in rendered.outcomes for one in outcome.candidates}
    whole = {outcome.row: outcome.failure for outcome in rendered.outcomes if outcome.failure}
    rows = rows_before(recipe, unit)
    asked = []
    for place, row in enumerate(rows):
        if row["selected"]:
            _, number, index = parse_key(row["key"])
            candidate = made.get((number, index)) or Candidate(index, row["seed"], None, 0, whole[number])
            asked.append((place, (requests[number], row, candidate, scored.get((number, index)), recipe)))
    of = course.staged
    for (place, _), row in zip(asked, spread(lambda given: _row(of.number, *given[1]), asked), strict=True):
        rows[place] = row
    seconds["score"] = seconds.get("score", 0.0) + scoring_s
    seconds["encode"] = seconds.get("encode", 0.0) + time.monotonic() - started - scoring_s
    scores = [row[CLIP_SCORE] for row in rows if row[CLIP_SCORE] is not None]
    return Finished(rows, scores, seconds, course.rendering_s + sum(rendered.seconds.values()))


def _row(
    number: int, placed: Placed, row: Mapping[str, Any], candidate: Candidate, scored: Scored | None, recipe: Recipe
) -> dict[str, Any]:
    """Return the row of a kept image after a stage, or once the image has a caption."""
    config = recipe.config
    stage, ranking = config.all_stages[number], config.ranking
    if isinstance(stage, Captions):
        return _captioned(placed, row, candidate, recipe)
    made = {**row, "unet_evaluations": row["unet_evaluations"] + candidate.evaluations}
    if CACHED in recipe.form.names:
        made[CACHED] = row[CACHED] + candidate.cached
    failure = candidate.failure
    if scored is not None and (wrong := non_finite(scored, ranking)):
        failure = Failure("non_finite_score", wrong)
    if failure or scored is None or candidate.pixels is None:
        assert failure is not None
        return _failed(made, stage, failure, recipe)
    pixels = candidate.pixels
    height, width = pixels.shape[:2]
    first = RENDERED, row["width"], row["height"], row[ranks_by(recipe.form)], None, row["unet_evaluations"]
    passed = stage.name, width, height, rank_score(scored, ranking), candidate.found, candidate.evaluations
    made[STAGES] = [*(row[STAGES] or [dict(zip(ENTRY, first, strict=True))]), dict(zip(ENTRY, passed, strict=True))]
    made |= {"width": width, "height": height, "pixel_sha256": pixel_sha256(pixels)}
    if EMBEDDING in recipe.form.names:
        made[EMBEDDING] = scored.embedding.astype(np.float16)
    form = LOSSLESS if number + 1 < len(config.all_stages) else config.shards.image_format
    image, beside = unpacked(row[IMAGE], recipe.form.names)
    if number == 0 and STAGE0 in recipe.form.names:
        made[STAGE0], beside = entry(image), (*beside, image)
    through = config.stages[: number + 1]
    return {**made, **encoded(placed, candidate, pixels, hashes_in(row), beside, recipe, form, through)}


def _captioned(placed: Placed, row: Mapping[str, Any], candidate: Candidate, recipe: Recipe) -> dict[str, Any]:
    """Return the row of a kept image with its caption, and with its file in the format of the dataset."""
    if candidate.caption is None:
        assert candidate.failure is not None and recipe.config.captions is not None
        return _failed(row, recipe.config.captions, candidate.failure, recipe)
    image, beside = unpacked(row[IMAGE], recipe.form.names)
    form, stages = recipe.config.shards.image_format, recipe.config.stages
    written = encoded(placed, candidate, decoded(image), hashes_in(row), beside, recipe, form, stages)
    return {**row, **written, CAPTION: candidate.caption}


def _failed(row: Mapping[str, Any], stage: StageOrCaptions, failure: Failure, recipe: Recipe) -> dict[str, Any]:
    """Return the row of an image that was kept, and has failed in a stage."""
    scores = (CLIP_SCORE, *(one.name for one in ranking_columns(recipe.config.ranking)))
    gone = *scores, "pixel_sha256", "sha256", "bytes", "rank", STAGES, STAGE0, EMBEDDING, IMAGE
    said = {"error": failure.code, "error_message": stage_error(stage, failure.message)}
    nulls = {name: None for name in gone if name in recipe.form.names or name == IMAGE}
    return {**row, **nulls, "selected": False, "status": "failed", **said}
