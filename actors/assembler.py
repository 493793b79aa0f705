"""The task that makes a shard of its parts and commits it."""

from typing import Any

import ray

from shards.assembly import assemble
from shards.commits import CommitRecord


@ray.remote(max_retries=3, scheduling_strategy="SPREAD")
def assemble_shard(arguments: dict[str, Any]) -> CommitRecord:
    """`shards.assembly.assemble` with these arguments. Doing it again, even at the same time, publishes the same bytes."""
    return assemble(**arguments)
