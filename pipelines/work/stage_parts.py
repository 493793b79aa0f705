"""Writes and reads the parts that stages begin with: the rows of a unit whose images are chosen, and these images, lossless."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promptmill.configs.columns import CACHED, CLIP_SCORE, RANK_SCORE
from promptmill.configs.errors import shown
from promptmill.configs.schema import ImageFormat
from promptmill.configs.stages import StageOrCaptions
from promptmill.pipelines.work.passes import Staged
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Unit, parse_key
from promptmill.shards.bundles import BundleError, unpacked
from promptmill.shards.image_reader import PictureError, read_picture
from promptmill.shards.keys import parse
from promptmill.shards.parts import PartError, part_name, read_part, write_part
from promptmill.shards.storage import delete, join
from promptmill.shards.tables import IMAGE

_NEEDED = ("seed", "width", "height", "unet_evaluations", CACHED, CLIP_SCORE, RANK_SCORE, IMAGE)  # of a kept row, where it is there
_IN_STAGE = "stage "  # an error message begins with it
LOSSLESS: ImageFormat = "png"  # the format of the images between stages, whatever that of the dataset


def begin_stage(recipe: Recipe, unit: Unit, number: int, rows: Sequence[Mapping[str, Any]]) -> Staged | None:
    """Write the part that a stage of a unit begins with; return the stage, or None where nothing is kept or no stage is left.

    Args:
        recipe: The constants of the run.
        unit: The unit.
        number: The number of the stage, counted from 0.
        rows: The unit's rows, with an image in `LOSSLESS` where one is kept.

    Raises:
        StorageError: The part cannot be written.
    """
    stages = recipe.config.all_stages
    if number == len(stages) or not (kept := _kept(rows)):
        return None
    part = part_name(unit.stage_name(number))
    write_part(recipe.output, part, rows, recipe.form, recipe.fingerprint)
    return Staged(number, stages[number], kept, part)


def stage_begun(recipe: Recipe, unit: Unit, number: int) -> Staged:
    """Return the stage of a unit that begins with a part that is there.

    Raises:
        PartError: The part is broken, or of other rows.
        FileNotFoundError: The part is not there.
    """
    part = part_name(unit.stage_name(number))
    table = read_part(recipe.output, part, recipe.form, recipe.fingerprint)
    place = join(recipe.output, "parts", part)
    rows = _sound(table.to_pylist(), place)
    if {_row(row) for row in rows} != {placed.row for placed in unit.requests}:
        raise PartError(f"{place}: is of other rows")
    return Staged(number, recipe.config.all_stages[number], _kept(rows), part)


def rows_before(recipe: Recipe, unit: Unit) -> list[dict[str, Any]]:
    """Return the rows that the stage of a unit, or of a piece of it, begins with.

    Raises:
        PartError: The part is broken or gone.
        StorageError: The output cannot be read.
    """
    course = unit.course
    assert course is not None and course.staged is not None
    own, place = {placed.row for placed in unit.requests}, join(recipe.output, "parts", course.staged.part)
    try:
        table = read_part(recipe.output, course.staged.part, recipe.form, recipe.fingerprint)
    except FileNotFoundError:
        raise PartError(f"{place}: is not there any more; run again, and what it held is rendered again") from None
    return [row for row in _sound(table.to_pylist(), place) if _row(row) in own]


def pictures_before(recipe: Recipe, unit: Unit) -> dict[tuple[int, int], np.ndarray]:
    """Return the images that the stage of a unit begins with, (H, W, 3) uint8, by row and candidate.

    Raises:
        PartError, StorageError: As `rows_before`; or an image cannot be decoded, and the part is deleted.
    """
    course = unit.course
    assert course is not None and course.staged is not None
    found = {}
    for row in rows_before(recipe, unit):
        if row["selected"]:
            _, place, index = parse_key(row["key"])
            try:
                image, _ = unpacked(row[IMAGE], recipe.form.names)
                found[place, index] = decoded(image)
            except (BundleError, PictureError) as error:
                part = join(recipe.output, "parts", course.staged.part)
                delete(part)
                said = f"{part}: {row['key']}: its image {error}; deleted: run again, and what it held is rendered again"
                raise PartError(said) from None
    return found


def decoded(image: bytes) -> np.ndarray:
    """Return the pixels of an image in `LOSSLESS`, (H, W, 3) uint8."""
    width, height = (int.from_bytes(image[at : at + 4], "big") for at in (16, 20))  # of the IHDR chunk
    return np.array(read_picture(image, LOSSLESS, width, height))


def stage_error(stage: StageOrCaptions, message: str) -> str:
    """Return the error message of a candidate that failed in a stage."""
    return f"{_IN_STAGE}{stage.name}: {message}"


def failed_in_stage(message: str | None) -> bool:
    """Return whether an error message is that of a candidate that was kept and then failed in a stage."""
    return message is not None and message.startswith(_IN_STAGE)


def _kept(rows: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, ...]]:
    kept: dict[int, tuple[int, ...]] = {}
    for row in rows:
        if row["selected"]:
            _, place, index = parse_key(row["key"])
            kept[place] = (*kept.get(place, ()), index)
    return {place: tuple(sorted(indices)) for place, indices in kept.items()}


def _sound(rows: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
    """Return the rows of the part at a place.

    Raises:
        PartError: A row lacks what a stage needs of it, as in a part that was forged.
    """
    for row in rows:
        found = parse(row["key"] or "")
        if found is None:
            raise PartError(f"{place}: {shown(str(row['key']))}: not a key")
        if row["selected"] and found[2] is None:
            raise PartError(f"{place}: {row['key']}: is kept, and is no candidate")
        if row["selected"] and (gone := [name for name in _NEEDED if row.get(name, "") is None]):
            raise PartError(f"{place}: {row['key']}: is kept and has no {gone[0]}")
    return rows


def _row(row: Mapping[str, Any]) -> int:
    found = parse(row["key"])
    assert found is not None
    return found[1]
