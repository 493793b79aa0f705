"""Counts requests and candidates by what becomes of them: one type, of which an outcome is one field.

Commit records, the index, receipts, progress, metrics, the card and the summaries take their counts, and the names of outcomes,
from here.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pyarrow as pa

from promptmill.configs.columns import SPARED


def _outcome(meaning: str = "", of_rows: bool = True) -> Any:
    """Declare an outcome of candidates.

    Args:
        meaning: What the card says of it, for an outcome that most datasets have none of: files name those where there are some.
        of_rows: Whether each such candidate has a row, whose status is the outcome's name.
    """
    return field(default=0, metadata={"outcome": True, "meaning": meaning, "of_rows": of_rows})


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Counts requests, and candidates by what has become of them.

    Attributes:
        failed_requests: Requests without a single rendered candidate.
        kept, rejected: Rendered candidates whose image is in the dataset, and those whose image is not.
        failed: Candidates that did not become an image.
        drafted: Left behind after a draft.
        spared: Never begun, since their request had enough good ones before them.
    """

    requests: int = 0
    failed_requests: int = 0
    kept: int = _outcome()
    rejected: int = _outcome()
    failed: int = _outcome()
    drafted: int = _outcome(
        "Drafted ones were ranked after a few steps and never finished; they have a row too, with their drafts' scores.\n"
    )
    spared: int = _outcome(
        "Spared ones were never begun, since their request had enough good images before; its rows say how many.\n", of_rows=False
    )

    @property
    def by_outcome(self) -> dict[str, int]:
        """Return the number of candidates of each outcome."""
        return {name: getattr(self, name) for name in OUTCOMES}

    @property
    def shown(self) -> dict[str, int]:
        """Return the number of candidates of each outcome, without those that most datasets have none of, where there are none."""
        return {name: number for name, number in self.by_outcome.items() if number or name not in RARE}

    @property
    def rare(self) -> dict[str, int]:
        """Return the number of candidates of those outcomes that most datasets have none of, where there are some."""
        return {name: number for name in RARE if (number := getattr(self, name))}

    @property
    def candidates(self) -> int:
        """Return the number of all candidates, whatever has become of them."""
        return sum(self.by_outcome.values())

    @property
    def begun(self) -> int:
        """Return the number of candidates that have a row: all but those that were never begun."""
        return sum(getattr(self, name) for name in STATUSES)

    def __add__(self, other: "Outcomes") -> "Outcomes":
        return Outcomes(**{name: getattr(self, name) + getattr(other, name) for name in COUNTS})


_FIELDS = [one for one in fields(Outcomes) if one.metadata.get("outcome")]
OUTCOMES = tuple(one.name for one in _FIELDS)
STATUSES = tuple(one.name for one in _FIELDS if one.metadata["of_rows"])
# Most datasets have none of these; files name them only where there are some.
RARE = {one.name: one.metadata["meaning"] for one in _FIELDS if one.metadata["meaning"]}
COUNTS = tuple(one.name for one in fields(Outcomes))


def counts_of(of: Outcomes) -> dict[str, Any]:
    """Return the counts of a record, a receipt or whatever counts, as the arguments of another."""
    return {name: getattr(of, name) for name in COUNTS}


def summed(all_: Iterable[Outcomes]) -> Outcomes:
    """Return the sums of several counts."""
    return sum(all_, Outcomes())


def as_sum(counts: Outcomes) -> str:
    """Return the counts in words: 3 kept + 4 rejected + 1 failed."""
    return " + ".join(f"{number} {name}" for name, number in counts.shown.items())


def as_values(counts: Outcomes) -> dict[str, Any]:
    """Return the fields of a record, totals or the like as files say them: with all candidates, without rare outcomes of none."""
    values = {name: value for name, value in asdict(counts).items() if value or name not in RARE}
    return {**values, "candidates": counts.candidates}


def request_of(key: str) -> str:
    """Return the shard and row of a key, which name its request: 000012-00003 of 000012-00003-0001."""
    return "-".join(key.split("-")[:2])


def row_of(key: str) -> int:
    """Return the row in its shard that a key is of: 3 of 000012-00003-0001."""
    return int(key.split("-")[1])


def count(table: pa.Table) -> Outcomes:
    """Return the counts of a shard's metadata.

    A request that failed as a whole, one row without a candidate, counts all of its candidates.

    Raises:
        ValueError: A row has no key, or its status is none that we know; or the rows of a request, and those that it is said to be
            spared, are not as many as its candidates.
    """
    candidates: dict[str, int] = dict.fromkeys(STATUSES, 0)
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
    failed = list(rendered.values()).count(False)
    return Outcomes(requests=len(rendered), failed_requests=failed, **{**candidates, "spared": spared})


def _spared(table: pa.Table) -> int:
    """Return the number of candidates that were never begun; each request's rows state it, and are as many as are left."""
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
