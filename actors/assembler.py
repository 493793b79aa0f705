"""The task that makes a shard of its parts and commits it."""

from collections.abc import Sequence
from typing import Any

import ray

from shards.assembly import assemble
from shards.commits import CommitRecord, check_plan, read_record
from shards.generations import drop_earlier
from shards.parts import PartError, drop_broken
from shards.storage import delete, join


@ray.remote(max_retries=3, scheduling_strategy="SPREAD")
def assemble_shard(arguments: dict[str, Any], others: Sequence[str] = ()) -> CommitRecord:
    """`shards.assembly.assemble` with these arguments, then what it replaces goes. Doing it again publishes the same bytes.

    Args:
        arguments: By name.
        others: Parts of the shard that it is not made of.

    Raises:
        PartError: Parts are broken or of another plan. They are deleted, so that the next run renders their units again.
        Otherwise as `assemble`.
    """
    output, parts = arguments["output"], arguments["parts"]
    try:
        record = assemble(**arguments)
    except FileNotFoundError:
        # Another try of this task came first, and has cleared up behind itself.
        record = read_record(output, arguments["shard"], arguments.get("generation", 0))
        check_plan(output, [record], arguments["fingerprint"])
    except PartError as error:
        dropped = drop_broken(output, parts, arguments["form"], arguments["fingerprint"])
        more = f" (and {len(dropped) - 1} more parts of its shard)" if len(dropped) > 1 else ""
        raise PartError(f"{error}{more}; deleted: run again, and what it held is rendered again") from None
    drop_earlier(output, record.shard, record.generation)
    for part in (*parts, *others):
        delete(join(output, "parts", part))
    return record
