"""Groups images that are nearly the same by what `promptmill dedup` goes by, and images that are equal pixel for pixel."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from promptmill.shards.near_duplicates import COSINE, HASH_BITS, Pictures, find_twins

MOST_EMBEDDINGS = 10_000  # images compared with one another
MOST_HASHED = 500  # images compared where each has to be decoded first


@dataclass(frozen=True)
class Group:
    """Holds images that are nearly the same as the first of them.

    Attributes:
        members: Their indices among the images compared.
    """

    members: Sequence[int]


@dataclass(frozen=True)
class Hashes:
    """Holds the perceptual hash of an image and its mean colours, as `shards.perceptual_hash` has them."""

    hash: int
    colours: np.ndarray


def by_embedding(embeddings: np.ndarray) -> list[Group]:
    """Group images by (N, D) embeddings of any length, the largest group first; rows that are not finite are in none."""
    vectors = embeddings.astype(np.float32)
    finite = np.isfinite(vectors).all(axis=1, keepdims=True)
    return _grouped(_pictures(len(vectors), embeddings=np.where(finite, vectors, 0)))


def by_hash(hashes: Sequence[Hashes]) -> list[Group]:
    """Group images by their perceptual hashes, the largest group first."""
    numbers = np.array([one.hash for one in hashes], np.uint64)
    return _grouped(_pictures(len(hashes), hashes=numbers, colours=np.stack([one.colours for one in hashes])))


def equal(hashes: np.ndarray) -> list[Group]:
    """Group exactly equal values of (N,), the largest group first."""
    order = np.argsort(hashes, kind="stable")
    ends = np.flatnonzero(np.diff(hashes[order])) + 1
    runs = [run for run in np.split(order, ends) if len(run) > 1]
    return sorted((Group(run.tolist()) for run in runs), key=lambda group: (-len(group.members), group.members[0]))


def _pictures(number: int, **signs: np.ndarray) -> Pictures:
    # Of images whose scores are equal the first stays; no two have the same file, which `equal` looks for.
    names = [str(place) for place in range(number)]
    return Pictures(names, [0.0] * number, names, names, **signs)


def _grouped(pictures: Pictures) -> list[Group]:
    twins, _ = find_twins(pictures, COSINE, HASH_BITS)
    members: Mapping[int, list[int]] = defaultdict(list)
    for place, twin in sorted(twins.items()):
        members[twin.of].append(place)
    groups = [Group([first, *others]) for first, others in members.items()]
    return sorted(groups, key=lambda group: (-len(group.members), group.members[0]))
