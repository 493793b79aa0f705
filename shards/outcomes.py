"""Counts what a shard's rows say has become of its requests."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from promptmill.shards.tables import SPARED

STATUSES = ("kept", "rejected", "failed", "drafted")
RARE = ("drafted", "spared")  # counts that most datasets have none of; files say them only where there are some


class Settled(Protocol):
    """Whatever counts candidates."""

    @property
    def kept(self) -> int: ...
    @property
    def rejected(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def drafted(self) -> int: ...
    @property
    def spared(self) -> int: ...


@dataclass(frozen=True)
class Counts:
    """Requests, and candidates by what has become of them.

    Attributes:
        failed_requests: Those without a single rendered candidate.
        drafted: Left behind after a draft.
        spared: Never begun, since their request had enough good ones before them.
    """

    requests: int
    kept: int
    rejected: int
    failed: int
    failed_requests: int
    drafted: int = 0
    spared: int = 0

    @property
    def candidates(self) -> int:
        return settled(self)


def settled(counts: Settled) -> int:
    """All candidates, whatever has become of them."""
    return counts.kept + counts.rejected + counts.failed + counts.drafted + counts.spared


def as_sum(counts: Settled) -> str:
    """3 kept + 4 rejected + 1 failed."""
    sum_ = f"{counts.kept} kept + {counts.rejected} rejected + {counts.failed} failed"
    return sum_ + "".join(f" + {number} {name}" for name in RARE if (number := getattr(counts, name)))


def without_rare(values: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as files say them."""
    return {name: value for name, value in values.items() if value or name not in RARE}


def request_of(key: str) -> str:
    """The shard and row of a key, which name its request: 000012-00003 of 000012-00003-0001."""
    return "-".join(key.split("-")[:2])


def row_of(key: str) -> int:
    """The row in its shard that a key is of: 3 of 000012-00003-0001."""
    return int(key.split("-")[1])


def count(table: pa.Table) -> Counts:
    """The counts of metadata. A request that failed as a whole, one row without a candidate, counts all of its candidates.

    Raises:
        ValueError: A row has no key, or its status is none that we know; or the rows of a request, and those that it is said to be
            spared, are not as many as its candidates.
    """
    candidates: Counter[str] = Counter()
    rendered: dict[str, bool] = {}
    spared = _spared(table) if SPARED in table.column_names else 0
    columns = (table[name].to_pylist() for name in ("key", "status", "candidate_index", "candidates"))
    for key, status, candidate, planned in zip(*columns, strict=True):
        if key is None:
            raise ValueError("a row has no key")
        if status not in STATUSES:
            raise ValueError(f"{key}: its status is {status}, not one of {', '.join(STATUSES)}")
        candidates[status] += 1 if candidate is not None else planned or 0
        request = request_of(key)
        rendered[request] = rendered.get(request, False) or status in ("kept", "rejected")
    kept, rejected, failed, drafted = (candidates[status] for status in STATUSES)
    return Counts(len(rendered), kept, rejected, failed, list(rendered.values()).count(False), drafted, spared)


def _spared(table: pa.Table) -> int:
    """How many candidates were never begun; each request's rows say so of it, and are as many as are left."""
    rows: Counter[str] = Counter()
    said: dict[str, tuple[int, int]] = {}
    for key, candidate, planned, spared in zip(
        *(table[name].to_pylist() for name in ("key", "candidate_index", "candidates", SPARED)), strict=True
    ):
        if key is not None and candidate is not None:
            rows[request_of(key)] += 1
            if said.setdefault(request_of(key), (planned, spared)) != (planned, spared) or spared is None:
                raise ValueError(f"{key}: says that {spared} of {planned} candidates were spared, another of its request otherwise")
    for request, (planned, spared) in said.items():
        if rows[request] + spared != planned:
            raise ValueError(f"{request}: {rows[request]} rows and {spared} spared are not its {planned} candidates")
    return sum(spared for _, spared in said.values())
