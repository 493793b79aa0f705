"""Joins the parts of a unit's slices into the unit's part: the part that the unit would have written, had it been rendered whole.

The slices' parts have everything that ranks a candidate, exactly, and the images that may be kept. The choice is made here, over
all candidates, by the function that chooses in a whole unit. So no byte of a dataset depends on how a request was cut.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pyarrow as pa

from promptmill.pipelines.work.candidate_scores import Found, closed
from promptmill.pipelines.work.metadata_rows import Facts, candidate_row, shared_row
from promptmill.pipelines.work.results import Candidate, Failure, InputError, Outcome
from promptmill.pipelines.work.units import Unit, candidate_seed
from promptmill.shards.parts import PartError, part_name, read_part, write_part
from promptmill.shards.storage import join
from promptmill.shards.tables import FOUND, IMAGE, slice_form


@dataclass(frozen=True)
class Joined:
    """Holds the numbers of a unit that was joined from its slices.

    Attributes:
        kept, rejected, failed: Candidates that were open in the slices named as fresh, by their outcome.
        rendered: Whether any candidate of the request, fresh or not, is kept or rejected.
        errors: How often each code occurred in the rows of slices that failed as a whole.
        scores: CLIP scores of the kept and rejected ones.
        part_bytes: Size of the part.
    """

    kept: int
    rejected: int
    failed: int
    rendered: bool
    errors: Mapping[str, int]
    scores: Sequence[float]
    part_bytes: int


def join_slices(
    output: str, unit: Unit, slices: Sequence[Unit], fresh: Collection[str], facts: Facts, form: pa.Schema, fingerprint: str
) -> Joined:
    """Write the part of a unit whose slices all have theirs. A second call writes the same bytes.

    A slice that failed as a whole counts like this. Where the error is the request's own fault, the request fails as a whole, as it
    does in a unit that is not cut. Where infrastructure is to blame, the slice's candidates fail and the others stay; only where no
    slice got through does the request fail as a whole.

    Args:
        output: The dataset's URI.
        unit: A unit of one request.
        slices: All of the unit's slices, in their order.
        fresh: Names of the slices that the result counts.
        facts: The constants of the run's rows.
        form: The metadata's schema.
        fingerprint: The plan's fingerprint.

    Raises:
        PartError: A slice's part is broken, of another plan, or not there.
        StorageError: The output cannot be read or written.
    """
    opened = slice_form(form)
    rows, failed = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    of: dict[int, Unit] = {}
    for one in slices:
        # The images are read later, and only those that are kept.
        there = _read(output, one, opened, fingerprint).drop_columns([IMAGE]).to_pylist()
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
        rows += [row for name, row in failed.items() for row in _failed_rows(unit, of, name, row, rows[0], facts)]
        made = _closed(unit, rows, facts)
        _put_images(output, made, of, opened, fingerprint)
    size = write_part(output, part_name(unit.name), made, form, fingerprint)
    return _counted(made, rows, of, failed, fresh, size)


def _read(output: str, one: Unit, opened: pa.Schema, fingerprint: str) -> pa.Table:
    name = part_name(one.name)
    try:
        return read_part(output, name, opened, fingerprint)
    except FileNotFoundError:
        raise PartError(f"{join(output, 'parts', name)}: is not there any more") from None


def _failed_rows(
    unit: Unit, of: Mapping[int, Unit], name: str, row: Mapping[str, Any], sibling: Mapping[str, Any], facts: Facts
) -> list[dict[str, Any]]:
    """Return a row for each candidate of a slice that failed as a whole. `row` says why; `sibling` is a row of another slice."""
    (placed,) = unit.requests
    shared = {column: sibling[column] for column in shared_row(facts, unit.shard, placed, Outcome(placed.row, ()))}
    # The sibling's size is that of its pixels; a candidate that was never rendered has the size that was asked for.
    shared |= {"width": placed.request.width, "height": placed.request.height}
    failure = Failure(row["error"], row["error_message"])
    made = []
    for index in (index for index, one in of.items() if one.name == name):
        seed = candidate_seed(facts.config.seed, placed.request, index)
        made.append(candidate_row(facts, shared, unit.shard, placed.row, Candidate(index, seed, None, 0, failure)))
    return made


def _closed(unit: Unit, rows: Sequence[Mapping[str, Any]], facts: Facts) -> list[dict[str, Any]]:
    """Return all rows of a request as the dataset has them, without their images."""
    ordered = [dict(row) for row in sorted(rows, key=lambda row: row["candidate_index"])]
    for row in ordered:
        packed = row.pop(FOUND, None)
        if packed is not None:
            row[FOUND] = Found.unpacked(packed, facts.config.ranking)
    (placed,) = unit.requests
    return list(closed(ordered, placed.request.keep, facts.config))


def _put_images(output: str, made: Sequence[dict[str, Any]], of: Mapping[int, Unit], opened: pa.Schema, fingerprint: str) -> None:
    """Fill in the images of the kept rows. One part at a time is in memory."""
    kept = {row["key"]: row for row in made if row["selected"]}
    units = {one.name: one for one in (of[row["candidate_index"]] for row in kept.values())}
    for one in units.values():
        table = _read(output, one, opened, fingerprint).select(["key", IMAGE])
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
        kept=ends["kept"],
        rejected=ends["rejected"],
        failed=ends["failed"],
        rendered=any(row["status"] in ("kept", "rejected") for row in made),
        errors=dict(sorted(Counter(row["error"] for row in new).items())),
        scores=[row[FOUND]["score"] for row in opened if became.get(row["key"], "failed") != "failed"],
        part_bytes=size,
    )
