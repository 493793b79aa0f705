"""Finds pictures that are nearly the same: by the hashes of file and pixels, by perceptual hash, by embedding."""

import itertools
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from promptmill.shards.perceptual_hash import BITS, same_colours

EXACT_UP_TO = (
    100_000  # pictures; two cores compare so many embeddings of 512 numbers in a minute or two, ten times as many in hours
)
COSINE = 0.97  # of the embeddings of two pictures that are no near-duplicates, at most
HASH_BITS = 4  # in which the perceptual hashes of near-duplicates differ, at most
BLOCK = 1024  # pictures compared at a time,
AGAINST = 16 * BLOCK  # and with so many, which takes 64 MiB

Sign = Literal["file", "pixels", "hash", "embedding"]  # the surest first


@dataclass(frozen=True)
class Pictures:
    """Holds the N pictures of a dataset by all that they are compared by.

    Attributes:
        keys: The N keys of the pictures, in their order.
        scores: N numbers: of two pictures that are alike the one of the higher score is kept, of equal ones the first.
        files, pixels: N SHA-256 of the files and of the pixels.
        hashes, colours: As `shards.perceptual_hash` has them, (N,) uint64 and (N, 48) int16; None where they are not compared.
        embeddings: (N, D), any float; zeros for a picture without one; None where they are not compared.
    """

    keys: Sequence[str]
    scores: Sequence[float]
    files: Sequence[str]
    pixels: Sequence[str]
    hashes: np.ndarray | None = None
    colours: np.ndarray | None = None
    embeddings: np.ndarray | None = None


@dataclass(frozen=True)
class Twin:
    """Says why a picture is superfluous.

    Attributes:
        of: The number of the picture that is kept instead; it is no twin itself.
        by: The surest sign that tells.
        hamming: In how many bits, of 64, the perceptual hashes differ, where they tell.
        cosine: The cosine of the embeddings, -1 to 1, where they tell.
    """

    of: int
    by: Sign
    hamming: int | None = None
    cosine: float | None = None


def find_twins(
    pictures: Pictures, cosine: float | None, bits: int | None, exact_up_to: int = EXACT_UP_TO
) -> tuple[dict[int, Twin], bool]:
    """Find the pictures that are nearly the same as a better one.

    Pictures are gone through from the best score to the worst, and each is compared with those that are kept so far: so a chain of
    pictures of which each is like the next is not taken for one, and each twin is directly like the one that is kept.

    Args:
        pictures: All pictures.
        cosine: The highest cosine that the embeddings of two kept pictures may have; None to leave embeddings out.
        bits: Pictures whose perceptual hashes differ in at most so many bits are the same; None to leave hashes out.
        exact_up_to: Beyond so many pictures embeddings are looked up in a graph of neighbours (HNSW, Malkov and Yashunin,
            arXiv:1603.09320), which misses a few.

    Returns:
        Twins by the number of the superfluous picture, and whether nothing can have been missed.
    """
    number = len(pictures.keys)
    exact = cosine is None or pictures.embeddings is None or number <= exact_up_to
    order = sorted(range(number), key=lambda i: (-pictures.scores[i], i))
    files, pixels = dict[str, int](), dict[str, int]()
    hashes = _Hashes(pictures, bits) if bits is not None and pictures.hashes is not None else None
    embeddings = _Embeddings(pictures, cosine, exact) if cosine is not None and pictures.embeddings is not None else None
    twins: dict[int, Twin] = {}
    for start in range(0, number, BLOCK):
        block = order[start : start + BLOCK]
        if embeddings:
            embeddings.begin(block)
        for place, i in enumerate(block):
            twin = None
            if pictures.files[i] in files:
                twin = Twin(files[pictures.files[i]], "file")
            elif pictures.pixels[i] in pixels:
                twin = Twin(pixels[pictures.pixels[i]], "pixels")
            twin = twin or (hashes.twin(i) if hashes else None) or (embeddings.twin(place) if embeddings else None)
            if twin:
                twins[i] = twin
                continue
            files.setdefault(pictures.files[i], i)
            pixels.setdefault(pictures.pixels[i], i)
            if hashes:
                hashes.keep(i)
            if embeddings:
                embeddings.keep(place)
        if embeddings:
            embeddings.end()
    return twins, exact


class _Hashes:
    """Holds the perceptual hashes of kept pictures, by pieces of them.

    Hashes that differ in at most n bits agree in one of n + 1 pieces (Norouzi, Punjani and Fleet, arXiv:1307.2982): none is missed.
    """

    def __init__(self, pictures: Pictures, bits: int):
        assert pictures.hashes is not None and pictures.colours is not None
        self._hashes, self._colours, self._bits = pictures.hashes, pictures.colours, bits
        edges = [BITS * piece // (bits + 1) for piece in range(bits + 2)]
        self._pieces = [(low, (1 << high - low) - 1) for low, high in itertools.pairwise(edges)]
        self._kept: list[dict[int, array[int]]] = [{} for _ in self._pieces]

    def _parts(self, i: int) -> Iterator[tuple[dict[int, "array[int]"], int]]:
        whole = int(self._hashes[i])
        for kept, (low, mask) in zip(self._kept, self._pieces, strict=True):
            yield kept, whole >> low & mask

    def keep(self, i: int) -> None:
        for kept, part in self._parts(i):
            kept.setdefault(part, array("q")).append(i)

    def twin(self, i: int) -> Twin | None:
        near: list[tuple[int, int]] = []
        for kept, part in self._parts(i):
            if part in kept:
                numbers = np.frombuffer(kept[part], np.int64)
                differing = np.bitwise_count(self._hashes[numbers] ^ self._hashes[i])
                close = differing <= self._bits
                near += zip(differing[close].tolist(), numbers[close].tolist(), strict=True)
        for hamming, other in sorted(near):
            if same_colours(self._colours[i], self._colours[other]):
                return Twin(other, "hash", hamming=hamming)
        return None


class _Index(Protocol):
    """Holds unit vectors that can be asked for the nearest to others."""

    def add(self, vectors: np.ndarray) -> None: ...
    def nearest(self, vectors: np.ndarray) -> np.ndarray: ...


class _Embeddings:
    """Holds the embeddings of kept pictures, and those of the block that is gone through."""

    def __init__(self, pictures: Pictures, cosine: float, exact: bool):
        assert pictures.embeddings is not None
        self._all, self._cosine = pictures.embeddings, cosine
        self._kept: list[int] = []
        width = self._all.shape[1]
        self._index: _Index = _Exact(width) if exact else _Approximate(width)

    def _unit(self, numbers: Sequence[int]) -> np.ndarray:
        vectors = self._all[list(numbers)].astype(np.float32)
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)

    def begin(self, block: Sequence[int]) -> None:
        self._block, self._new = list(block), np.zeros(len(block), bool)
        self._vectors = self._unit(block)
        self._among = self._vectors @ self._vectors.T
        self._near = np.full(len(block), -2.0)
        if self._kept:
            self._nearest = self._index.nearest(self._vectors)
            others = self._unit([self._kept[place] for place in self._nearest])
            self._near = (self._vectors * others).sum(-1)

    def twin(self, place: int) -> Twin | None:
        before = np.where(self._new, self._among[place], -2.0)
        here = int(before.argmax())
        if max(self._near[place], before[here]) <= self._cosine:
            return None
        if self._near[place] >= before[here]:
            return Twin(self._kept[self._nearest[place]], "embedding", cosine=float(self._near[place]))
        return Twin(self._block[here], "embedding", cosine=float(before[here]))

    def keep(self, place: int) -> None:
        self._new[place] = True

    def end(self) -> None:
        self._index.add(self._vectors[self._new])
        self._kept += [number for number, new in zip(self._block, self._new, strict=True) if new]


class _Exact:
    """Holds unit vectors that are all compared, one after the other."""

    def __init__(self, width: int):
        self._vectors, self._number = np.empty((BLOCK, width), np.float32), 0

    def add(self, vectors: np.ndarray) -> None:
        while self._number + len(vectors) > len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.empty_like(self._vectors)])
        self._vectors[self._number : self._number + len(vectors)] = vectors
        self._number += len(vectors)

    def nearest(self, vectors: np.ndarray) -> np.ndarray:
        best, nearest = np.full(len(vectors), -2.0, np.float32), np.zeros(len(vectors), np.int64)
        for start in range(0, self._number, AGAINST):
            cosines = vectors @ self._vectors[start : min(start + AGAINST, self._number)].T
            places = cosines.argmax(-1)
            values = cosines[np.arange(len(vectors)), places]
            nearest = np.where(values > best, start + places, nearest)
            best = np.maximum(best, values)
        return nearest


class _Approximate:
    """Holds unit vectors in usearch's graph of neighbours; grown by one thread, so that the graph is the same each time."""

    def __init__(self, width: int):
        from usearch.index import Index, MetricKind, ScalarKind

        self._index = Index(ndim=width, metric=MetricKind.IP, dtype=ScalarKind.F16, expansion_add=128, expansion_search=128)

    def add(self, vectors: np.ndarray) -> None:
        if len(vectors):
            self._index.add(np.arange(len(self._index), len(self._index) + len(vectors)), vectors, threads=1)

    def nearest(self, vectors: np.ndarray) -> np.ndarray:
        return np.asarray(self._index.search(vectors, 1).keys).reshape(len(vectors), -1)[:, 0].astype(np.int64)
