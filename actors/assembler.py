"""The task that makes a shard of its parts and commits it."""

from typing import Any

import ray

from shards.assembly import assemble
from shards.commits import CommitRecord, read_record
from shards.parts import PartError, drop_broken
from shards.storage import delete, join


@ray.remote(max_retries=3, scheduling_strategy="SPREAD")
def assemble_shard(arguments: dict[str, Any]) -> CommitRecord:
    """`shards.assembly.assemble` with these arguments, then the parts go. Doing it again publishes the same bytes.

    Raises:
        PartError: Parts are broken or of another plan. They are deleted, so that the next run renders their units again.
        Otherwise as `assemble`.
    """
    output, parts = arguments["output"], arguments["parts"]
    try:
        record = assemble(**arguments)
    except FileNotFoundError:
        # Another try of this task came first, and has cleared up behind itself.
        record = read_record(output, arguments["shard"])
    except PartError as error:
        dropped = drop_broken(output, parts, arguments["form"], arguments["fingerprint"])
        more = f" (and {len(dropped) - 1} more parts of its shard)" if len(dropped) > 1 else ""
        raise PartError(f"{error}{more}; deleted: run again, and what it held is rendered again") from None
    for part in parts:
        delete(join(output, "parts", part))
    return record
