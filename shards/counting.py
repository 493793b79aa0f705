"""Counts what a shard's rows say has become of its requests."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

STATUSES = ("kept", "rejected", "failed")


@dataclass(frozen=True)
class Counts:
    """Requests, and candidates by what has become of them.

    Attributes:
        failed_requests: Those without a single rendered candidate.
    """

    requests: int
    kept: int
    rejected: int
    failed: int
    failed_requests: int

    @property
    def candidates(self) -> int:
        return self.kept + self.rejected + self.failed


def request_of(key: str) -> str:
    """The shard and row of a key, which name its request: 000012-00003 of 000012-00003-0001."""
    return "-".join(key.split("-")[:2])


def row_of(key: str) -> int:
    """The row in its shard that a key is of: 3 of 000012-00003-0001."""
    return int(key.split("-")[1])


def count(table: pa.Table) -> Counts:
    """The counts of metadata. A request that failed as a whole, one row without a candidate, counts all of its candidates.

    Raises:
        ValueError: A row has no key, or its status is none that we know.
    """
    candidates: Counter[str] = Counter()
    rendered: dict[str, bool] = {}
    columns = (table[name].to_pylist() for name in ("key", "status", "candidate_index", "candidates"))
    for key, status, candidate, planned in zip(*columns, strict=True):
        if key is None:
            raise ValueError("a row has no key")
        if status not in STATUSES:
            raise ValueError(f"{key}: its status is {status}, not one of {', '.join(STATUSES)}")
        candidates[status] += 1 if candidate is not None else planned or 0
        request = request_of(key)
        rendered[request] = rendered.get(request, False) or status != "failed"
    kept, rejected, failed = (candidates[status] for status in STATUSES)
    return Counts(len(rendered), kept, rejected, failed, failed_requests=list(rendered.values()).count(False))
