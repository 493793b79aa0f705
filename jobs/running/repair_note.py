"""Keeps the note of a repair until the repair is over: whoever is cut off goes on with it."""

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import FailFast, Field

from promptmill.configs.json_values import Whole, read_json
from promptmill.shards.commits import MOST_GENERATION, shard_name
from promptmill.shards.storage import get, join

REPAIR_NOTE = "stats/repair.json"
MOST_NOTE = 192 * 2**20  # bytes of the note: it may be about every shard


@dataclass(frozen=True)
class Cleared:
    """Holds what a repair is about, from its beginning to its end.

    Attributes:
        shards: By the number of each that has to be made again, the generation that it is committed as.
        hashes: By the path of each of their files, the SHA-256 that record and index said: two where one of these was damaged.
    """

    # Numbers and names are parts of the names of files.
    shards: Annotated[dict[Whole, Annotated[int, Field(ge=0, le=MOST_GENERATION)]], FailFast()] = field(default_factory=dict)
    hashes: Annotated[dict[str, list[str]], FailFast()] = field(default_factory=dict)

    @property
    def unknown(self) -> list[int]:
        """The shards of whose files nobody knows what they were."""
        known = {stem(path) for path in self.hashes}
        return [shard for shard, generation in self.shards.items() if shard_name(shard, generation) not in known]


def remembered(output: str) -> Cleared:
    """Return the repair that was begun and is not over; nothing where there is none."""
    try:
        return read_json(Cleared, get(join(output, REPAIR_NOTE), MOST_NOTE))
    except (FileNotFoundError, ValueError):
        return Cleared()


def stem(path: str) -> str:
    """Return the name that a shard's files share."""
    return path.rpartition("/")[2].rpartition(".")[0]
