"""Which shards of a large dataset a report looks at: the same ones each time, spread evenly, since manifests are often sorted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from promptmill.shards.commits import CommitRecord

MOST_CANDIDATES = 250_000  # that are looked at; of a larger dataset, whole shards of about so many
FEWEST_SHARDS = 8  # however large they are

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """The shards that are looked at.

    Attributes:
        records: Of them, in their order.
        shards, candidates: How many are committed.
    """

    records: Sequence[CommitRecord]
    shards: int
    candidates: int

    @property
    def whole(self) -> bool:
        return len(self.records) == self.shards

    @property
    def seen(self) -> int:
        """Candidates in it."""
        return sum(record.candidates for record in self.records)


def sample(records: Sequence[CommitRecord], most: int = MOST_CANDIDATES) -> Sample:
    """All shards, or as many as hold about `most` candidates."""
    candidates = sum(record.candidates for record in records)
    number = len(records)
    if candidates > most:
        number = min(number, max(FEWEST_SHARDS, number * most // candidates))
    return Sample(spread(records, number), len(records), candidates)


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """So many of the items, or all where there are fewer: from the middle of each of `number` equal stretches."""
    if number >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]
