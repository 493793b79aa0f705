"""The task that makes a shard of its parts and commits it."""

from typing import Any

import ray

from shards.assembly import assemble
from shards.commits import CommitRecord, read_record
from shards.storage import delete, join


@ray.remote(max_retries=3, scheduling_strategy="SPREAD")
def assemble_shard(arguments: dict[str, Any]) -> CommitRecord:
    """`shards.assembly.assemble` with these arguments, then the parts go. Doing it again publishes the same bytes.

    Raises:
        As `assemble`.
    """
    output, parts = arguments["output"], arguments["parts"]
    try:
        record = assemble(**arguments)
    except FileNotFoundError:
        # Another try of this task came first, and has cleared up behind itself.
        record = read_record(output, arguments["shard"])
    for part in parts:
        delete(join(output, "parts", part))
    return record
