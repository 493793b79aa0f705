"""The work that makes a unit's part of those of its slices, and a shard of its parts, and commit it."""

import time
from collections.abc import Collection, Sequence

import pyarrow as pa

from promptmill.actors.receipts import Receipt
from promptmill.pipelines.work.joined_slices import join_slices
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Unit
from promptmill.shards.assembly import Assembly, assemble
from promptmill.shards.commits import CommitRecord, check_plan, read_record
from promptmill.shards.generations import drop_earlier
from promptmill.shards.parts import PartError, drop_broken, part_name
from promptmill.shards.storage import delete, join, staying
from promptmill.shards.tables import slice_form


def assemble_shard(recipe: Recipe, made_of: Assembly) -> CommitRecord:
    """Publish a shard by `shards.assembly.assemble`; then what it replaces goes. Doing it again publishes the same bytes.

    Raises:
        PartError: Parts are broken or of another plan. They are deleted, so that the next run renders their units again.
        Otherwise as `assemble`.
    """
    output, fingerprint = recipe.output, recipe.fingerprint
    try:
        with staying(output):
            record = assemble(output, made_of, recipe.form, recipe.config.shards.image_format, fingerprint)
    except FileNotFoundError:
        # Another try of this task came first, and has cleared up behind itself.
        record = read_record(output, made_of.shard, made_of.generation)
        check_plan(output, [record], fingerprint)
    except PartError as error:
        raise _dropped(error, recipe, made_of.parts, recipe.form) from None
    drop_earlier(output, record.shard, record.generation)
    for part in (*made_of.parts, *made_of.others):
        delete(join(output, "parts", part))
    return record


def join_unit(recipe: Recipe, unit: Unit, slices: Sequence[Unit], fresh: Collection[str]) -> Receipt:
    """Join a unit by `pipelines.work.joined_slices.join_slices`; returns what the receipts of fresh slices did not tell.

    Raises:
        PartError: As `assemble_shard`, of a slice.
        Otherwise as `join_slices`.
    """
    started = time.monotonic()
    try:
        with staying(recipe.output):
            joined = join_slices(recipe, unit, slices, fresh)
    except PartError as error:
        raise _dropped(error, recipe, [part_name(one.name) for one in slices], slice_form(recipe.form)) from None
    return Receipt.of_joined(unit, joined, {"join": time.monotonic() - started})


def _dropped(error: PartError, recipe: Recipe, parts: Sequence[str], form: pa.Schema) -> PartError:
    """Delete the parts that are broken; returns the error with what was done."""
    dropped = drop_broken(recipe.output, parts, form, recipe.fingerprint)
    more = f" (and {len(dropped) - 1} more parts of its shard)" if len(dropped) > 1 else ""
    done = "; deleted: run again" if dropped else "; run again"
    return PartError(f"{error}{more}{done}, and what it held is rendered again")
