"""Joins the parts of a unit's slices, assembles a shard of its parts, and commits the shard."""

import time
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from promptmill.actors.receipts import Receipt
from promptmill.pipelines.work.joined_slices import join_slices
from promptmill.pipelines.work.metadata_rows import Facts
from promptmill.pipelines.work.units import Unit
from promptmill.shards.assembly import assemble
from promptmill.shards.commits import CommitRecord, check_plan, read_record
from promptmill.shards.generations import drop_earlier
from promptmill.shards.parts import PartError, drop_broken, part_name
from promptmill.shards.storage import delete, join, staying
from promptmill.shards.tables import slice_form


def assemble_shard(arguments: dict[str, Any], others: Sequence[str] = ()) -> CommitRecord:
    """Run `shards.assembly.assemble` with these arguments, then delete what the shard replaces. A second run publishes the same
    bytes.

    Args:
        arguments: By name.
        others: Parts of the shard that it is not made of.

    Raises:
        PartError: Parts are broken or of another plan. These parts are deleted, so that the next run renders their units again.
            Otherwise as `assemble`.
    """
    output, parts = arguments["output"], arguments["parts"]
    try:
        with staying(output):
            record = assemble(**arguments)
    except FileNotFoundError:
        # Another try of this task came first, and has deleted the parts.
        record = read_record(output, arguments["shard"], arguments.get("generation", 0))
        check_plan(output, [record], arguments["fingerprint"])
    except PartError as error:
        raise _dropped(error, output, parts, arguments["form"], arguments["fingerprint"]) from None
    drop_earlier(output, record.shard, record.generation)
    for part in (*parts, *others):
        delete(join(output, "parts", part))
    return record


def join_unit(
    output: str, unit: Unit, slices: Sequence[Unit], fresh: Collection[str], facts: Facts, form: pa.Schema, fingerprint: str
) -> Receipt:
    """Run `pipelines.work.joined_slices.join_slices` with these arguments; return a receipt of what those of fresh slices did not
    count.

    Raises:
        PartError: As `assemble_shard`, of a slice. Otherwise as `join_slices`.
    """
    started = time.monotonic()
    try:
        with staying(output):
            joined = join_slices(output, unit, slices, fresh, facts, form, fingerprint)
    except PartError as error:
        raise _dropped(error, output, [part_name(one.name) for one in slices], slice_form(form), fingerprint) from None
    return Receipt.of_joined(unit, joined, {"join": time.monotonic() - started})


def _dropped(error: PartError, output: str, parts: Sequence[str], form: pa.Schema, fingerprint: str) -> PartError:
    """Delete the broken parts; return the error with a note on the deletion."""
    dropped = drop_broken(output, parts, form, fingerprint)
    more = f" (and {len(dropped) - 1} more parts of its shard)" if len(dropped) > 1 else ""
    done = "; deleted: run again" if dropped else "; run again"
    return PartError(f"{error}{more}{done}, and what it held is rendered again")
