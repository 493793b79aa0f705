"""Joins the parts of a unit's slices into the unit's part: the part that the unit would have written, had it been rendered whole.

The slices' parts have everything that ranks a candidate, exactly, and the images that may be kept. The choice is made here, over
all candidates, by the function that chooses in a whole unit. So no byte of a dataset depends on how a request was cut.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pyarrow as pa

from promptmill.configs.columns import VARIATION_SEED
from promptmill.pipelines.work.candidate_scores import Found, closed
from promptmill.pipelines.work.metadata_rows import candidate_row, shared_row
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Candidate, Failure, InputError, Outcome
from promptmill.pipelines.work.units import Unit, candidate_seed
from promptmill.shards.outcomes import Outcomes
from promptmill.shards.parts import PartError, part_name, read_part, write_part
from promptmill.shards.storage import join
from promptmill.shards.tables import FOUND, IMAGE


@dataclass(frozen=True)
class Joined(Outcomes):
    """Counts a unit that was joined from its slices: its request, and the candidates that were open in the slices named as fresh.

    Attributes:
        errors: How often each code occurred in the rows of slices that failed as a whole.
        scores: CLIP scores of the kept and rejected ones.
        part_bytes: Size of the part.
    """

    errors: Mapping[str, int]
    scores: Sequence[float]
    part_bytes: int


def join_slices(recipe: Recipe, unit: Unit, slices: Sequence[Unit], fresh: Collection[str]) -> Joined:
    """Write the part of a unit whose slices all have theirs. A second call writes the same bytes.

    A slice that failed as a whole counts like this. Where the error is the request's own fault, the request fails as a whole, as it
    does in a unit that is not cut. Where infrastructure is to blame, the slice's candidates fail and the others stay; only where no
    slice got through does the request fail as a whole.

    Args:
        recipe: The constants of the run.
        unit: A unit of one request.
        slices: All of the unit's slices, in their order.
        fresh: Names of the slices that the result counts.

    Raises:
        PartError: A slice's part is broken, of another plan, or not there.
        StorageError: The output cannot be read or written.
    """
    rows, failed = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    of: dict[int, Unit] = {}
    for one in slices:
        # The images are read later, and only those that are kept.
        there = _read(recipe, one).drop_columns([IMAGE]).to_pylist()
        assert one.span is not None
        of |= dict.fromkeys(one.span, one)
        if there[0]["candidate_index"] is None:
            (failed[one.name],) = there
        else:
            rows += there
    whole = next((row for row in failed.values() if not rows or row["error"] in get_args(InputError)), None)
    if whole is not None:
        made = [{name: value for name, value in whole.items() if name != FOUND}]
    else:
        rows += [row for name, row in failed.items() for row in _failed_rows(unit, of, name, row, rows[0], recipe)]
        made = _closed(unit, rows, recipe)
        _put_images(recipe, made, of)
    size = write_part(recipe.output, part_name(unit.name), made, recipe.form, recipe.fingerprint)
    return _counted(made, rows, of, failed, fresh, size)


def _read(recipe: Recipe, one: Unit) -> pa.Table:
    name = part_name(one.name)
    try:
        return read_part(recipe.output, name, recipe.form_of(one), recipe.fingerprint)
    except FileNotFoundError:
        raise PartError(f"{join(recipe.output, 'parts', name)}: is not there any more") from None


def _failed_rows(
    unit: Unit, of: Mapping[int, Unit], name: str, row: Mapping[str, Any], sibling: Mapping[str, Any], recipe: Recipe
) -> list[dict[str, Any]]:
    """Return a row for each candidate of a slice that failed as a whole. `row` says why; `sibling` is a row of another slice."""
    (placed,) = unit.requests
    shared = {column: sibling[column] for column in shared_row(recipe, unit.shard, placed, Outcome(placed.row, ()))}
    # The sibling's size is that of its pixels; a candidate that was never rendered has the size that was asked for.
    shared |= {"width": placed.request.width, "height": placed.request.height}
    if VARIATION_SEED in recipe.form.names:
        shared[VARIATION_SEED] = placed.request.variation_seed  # the sibling's is that of its candidate
    failure = Failure(row["error"], row["error_message"])
    made = []
    for index in (index for index, one in of.items() if one.name == name):
        seed = candidate_seed(recipe.config.seed, placed.request, index)
        made.append(candidate_row(recipe, shared, unit.shard, placed.row, Candidate(index, seed, None, 0, failure)))
    return made


def _closed(unit: Unit, rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> list[dict[str, Any]]:
    """Return all rows of a request as the dataset has them, without their images."""
    ordered = [dict(row) for row in sorted(rows, key=lambda row: row["candidate_index"])]
    for row in ordered:
        packed = row.pop(FOUND, None)
        if packed is not None:
            row[FOUND] = Found.unpacked(packed, recipe.config.ranking)
    (placed,) = unit.requests
    return list(closed(ordered, placed.request.keep, recipe.config))


def _put_images(recipe: Recipe, made: Sequence[dict[str, Any]], of: Mapping[int, Unit]) -> None:
    """Fill in the images of the kept rows. One part at a time is in memory."""
    kept = {row["key"]: row for row in made if row["selected"]}
    units = {one.name: one for one in (of[row["candidate_index"]] for row in kept.values())}
    for one in units.values():
        table = _read(recipe, one).select(["key", IMAGE])
        for key, image in zip(table["key"].to_pylist(), table[IMAGE], strict=True):
            if key in kept:
                kept[key][IMAGE] = image.as_py()


def _counted(
    made: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    of: Mapping[int, Unit],
    failed: Collection[str],
    fresh: Collection[str],
    size: int,
) -> Joined:
    # A row with the hash of an image file was open. The receipts of the slices have counted all others.
    opened = [row for row in rows if row.get("sha256") is not None and of[row["candidate_index"]].name in fresh]
    became = {row["key"]: row["status"] for row in made}
    ends = Counter(became.get(row["key"], "failed") for row in opened)
    new = [row for row in made if row["candidate_index"] is None or of[row["candidate_index"]].name in failed]
    return Joined(
        requests=1,
        failed_requests=int(not any(row["status"] in ("kept", "rejected") for row in made)),
        **ends,
        errors=dict(sorted(Counter(row["error"] for row in new).items())),
        scores=[row[FOUND]["score"] for row in opened if became.get(row["key"], "failed") != "failed"],
        part_bytes=size,
    )
