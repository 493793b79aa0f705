"""The index of a finished dataset and the mark that it is finished, made of the commit records and nothing else."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from promptmill.shards.commits import CommitError, CommitRecord
from promptmill.shards.outcomes import Outcomes, as_values, counts_of, summed
from promptmill.shards.storage import join, put

INDEX = "index.json"
SUCCESS = "_SUCCESS"


@dataclass(frozen=True)
class Totals(Outcomes):
    """Counts a whole dataset.

    Attributes:
        bytes: Of all published tars and Parquets.
    """

    shards: int
    bytes: int


def total(records: Sequence[CommitRecord]) -> Totals:
    """Return the sums of the records' counts."""
    size = sum(file.size for record in records for file in record.files)
    return Totals(len(records), size, **counts_of(summed(records)))


def encode_index(records: Sequence[CommitRecord]) -> bytes:
    """Return index.json: the plan's fingerprint, the dataset's format, the totals, and every shard's files and counts.

    Args:
        records: The last of each shard, in their order.
    """
    plans = list(dict.fromkeys(record.fingerprint for record in records))
    # Several only where changes were accepted in between; then each shard says its own.
    known = {"fingerprint"} if len(plans) == 1 else set[str]()
    formats = {record.format for record in records} - {1}
    shards = [{name: value for name, value in record.values().items() if name not in {*known, "format"}} for record in records]
    index: dict[str, Any] = {
        "fingerprint": plans[0] if len(plans) == 1 else plans or None,
        "totals": as_values(total(records)),
        "shards": shards,
    }
    index |= {"format": max(formats)} if formats else {}
    return (json.dumps(index, indent=1, sort_keys=True) + "\n").encode()


def publish_index(output: str, records: Sequence[CommitRecord], shards: int, accepted: Collection[str] = ()) -> Totals:
    """Say that a dataset is finished: write index.json, then an empty _SUCCESS.

    Args:
        output: The dataset's URI.
        records: The last of each shard, in their order.
        shards: How many the plan has.
        accepted: Fingerprints of earlier plans whose shards may stand beside those of the last.

    Raises:
        CommitError: Not all of them are committed, or not all with one plan.
    """
    if len(records) != shards or [record.shard for record in records] != list(range(shards)):
        raise CommitError(f"{output}: {len(records)} shards are committed of {shards} planned")
    plans = {record.fingerprint for record in records} - set(accepted)
    if len(plans) > 1:
        raise CommitError(f"{output}: its shards are of {len(plans)} plans, {', '.join(sorted(plans))}")
    put(join(output, INDEX), encode_index(records))
    put(join(output, SUCCESS), b"")
    return total(records)
