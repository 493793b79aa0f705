"""Keeps the note of a repair until the repair is over: whoever is cut off goes on with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from promptmill.configs.json_values import checked, parse_json
from promptmill.shards.commits import MOST_GENERATION, shard_name
from promptmill.shards.storage import get_small, join

REPAIR_NOTE = "stats/repair.json"
MOST_NOTE = 192 * 2**20  # bytes of the note: it may be about every shard


@dataclass(frozen=True)
class Cleared:
    """Holds what a repair is about, from its beginning to its end.

    Attributes:
        shards: By the number of each that has to be made again, the generation that it is committed as.
        hashes: By the path of each of their files, the SHA-256 that record and index said: two where one of these was damaged.
    """

    shards: Mapping[int, int] = field(default_factory=dict)
    hashes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def unknown(self) -> list[int]:
        """The shards of whose files nobody knows what they were."""
        known = {stem(path) for path in self.hashes}
        return [shard for shard, generation in self.shards.items() if shard_name(shard, generation) not in known]


def remembered(output: str) -> Cleared:
    """Return the repair that was begun and is not over; nothing where there is none."""
    try:
        values = parse_json(get_small(join(output, REPAIR_NOTE), MOST_NOTE))
        shards = {int(shard): generation for shard, generation in values["shards"].items()}
        cleared = checked(Cleared(shards, values["hashes"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return Cleared()
    # Both are parts of the names of files.
    sound = all(shard >= 0 and type(its) is int and 0 <= its <= MOST_GENERATION for shard, its in shards.items())
    return cleared if sound else Cleared()


def stem(path: str) -> str:
    """Return the name that a shard's files share."""
    return path.rpartition("/")[2].rpartition(".")[0]
