"""The task that makes a shard of its parts and commits it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray

from shards.assembly import assemble
from shards.commits import CommitRecord


@ray.remote(max_retries=3, scheduling_strategy="SPREAD")
def assemble_shard(
    output: str, shard: int, parts: Sequence[str], failed: Sequence[Mapping[str, Any]], form: pa.Schema, **said: Any
) -> CommitRecord:
    """See `shards.assembly.assemble`. Doing it again, even at the same time, publishes the same bytes."""
    return assemble(output, shard, parts, failed, form, **said)
