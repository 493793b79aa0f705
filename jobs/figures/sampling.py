"""Samples the shards of a large dataset for reports: the same shards each time, spread evenly, since manifests are often sorted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from promptmill.shards.commits import CommitRecord

MOST_CANDIDATES = 250_000  # looked at; of a larger dataset, whole shards of about as many
FEWEST_SHARDS = 8  # however large they are

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """Holds the shards that are looked at.

    Attributes:
        records: The commit records of the shards, in their order.
        shards, candidates: How many are committed in all.
    """

    records: Sequence[CommitRecord]
    shards: int
    candidates: int

    @property
    def whole(self) -> bool:
        return len(self.records) == self.shards

    @property
    def seen(self) -> int:
        """Return the number of candidates in the sample."""
        return sum(record.candidates for record in self.records)


def sample(records: Sequence[CommitRecord], most: int = MOST_CANDIDATES) -> Sample:
    """Return all shards, or as many as hold about `most` candidates."""
    candidates = sum(record.candidates for record in records)
    number = len(records)
    if candidates > most:
        number = min(number, max(FEWEST_SHARDS, number * most // candidates))
    return Sample(spread(records, number), len(records), candidates)


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """Return `number` of the items, or all where there are fewer: from the middle of each of `number` equal stretches."""
    if number >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]
