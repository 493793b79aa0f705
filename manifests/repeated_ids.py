"""Finds ids that occur more than once, exactly, in 8 bytes a row."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import xxhash


class Ids:
    """Holds the 64-bit hashes of the ids seen so far.

    Two different ids may share a hash, so a second look at the few ids in doubt decides.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")

    def add(self, id: str) -> None:
        self._hashes.append(_hash(id))

    def hashes(self) -> bytes:
        """Return the hashes so far, 8 bytes each, for `join` in another process."""
        return self._hashes.tobytes()

    def join(self, hashes: bytes) -> None:
        """Take in the ids of later rows, given as the bytes of their `hashes`."""
        self._hashes.frombytes(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def in_doubt(self) -> frozenset[int]:
        """Return the hashes that occur more than once."""
        hashes = np.frombuffer(self._hashes, np.uint64).copy()
        hashes.sort()
        return frozenset(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def doubled(ids: Iterable[tuple[str, str]], in_doubt: frozenset[int]) -> Iterator[tuple[str, str, str]]:
    """Yield (id, where it is, where it was first) for each id that came before, from a second pass over (id, where)."""
    first: dict[str, str] = {}
    for id, where in ids:
        if _hash(id) not in in_doubt:
            continue
        if id in first:
            yield id, where, first[id]
        else:
            first[id] = where


def _hash(id: str) -> int:
    return xxhash.xxh3_64_intdigest(id.encode())
