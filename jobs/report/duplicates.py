"""Finds near-duplicates: images whose CLIP embeddings, or without embeddings whose perceptual hashes, are almost the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

MOST_EMBEDDINGS = 10_000  # images compared with one another
MOST_HASHED = 500  # images compared where each has to be decoded first
SIMILAR = 0.95  # cosine of two CLIP embeddings
ALIKE = 24  # of a hash's 1,056 bits that may differ
SIDE = 8  # of the shrunken image that a hash is made of
FLAT = 8  # levels that neighbours may differ by and still be the same
STRIP = 512  # images compared with all others at a time


@dataclass(frozen=True)
class Group:
    """Holds images that are almost the same as the first of them.

    Attributes:
        members: Their indices among the images compared.
    """

    members: Sequence[int]


def by_embedding(embeddings: np.ndarray) -> list[Group]:
    """Group images by (N, D) embeddings of any length, the largest group first; rows that are not finite are in none."""
    vectors = embeddings.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A NaN compares as not similar.
    vectors /= np.where(lengths > 0, lengths, np.nan)
    return _grouped(vectors, SIMILAR)


def by_hash(hashes: np.ndarray) -> list[Group]:
    """Group images by (N, B) bool hashes, the largest group first."""
    signs = np.where(hashes, 1.0, -1.0).astype(np.float32)
    # The product of two sign vectors is the number of equal bits less the number of different bits.
    return _grouped(signs, hashes.shape[1] - 2 * ALIKE)


def _grouped(vectors: np.ndarray, least: float) -> list[Group]:
    """Group vectors: each image that is in no group yet begins one, with all free images whose product with it is at least `least`.

    Groups do not chain: every member is like the first.
    """
    free = np.ones(len(vectors), bool)
    groups = []
    for start in range(0, len(vectors), STRIP):
        close = vectors[start : start + STRIP] @ vectors[start:].T >= least
        for place in range(len(close)):
            if free[start + place]:
                members = start + np.flatnonzero(close[place] & free[start:])
                free[members] = False
                if len(members) > 1:
                    groups.append(Group(members.tolist()))
    return sorted(groups, key=lambda group: -len(group.members))


def equal(hashes: np.ndarray) -> list[Group]:
    """Group exactly equal values of (N,), the largest group first."""
    order = np.argsort(hashes, kind="stable")
    ends = np.flatnonzero(np.diff(hashes[order])) + 1
    runs = [run for run in np.split(order, ends) if len(run) > 1]
    return sorted((Group(run.tolist()) for run in runs), key=lambda group: (-len(group.members), group.members[0]))


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """Return the perceptual hash of an image in mode RGB, (1056,) bool.

    The hash has bits for each place and colour of the shrunken image: whether its value rises or falls to the right and downwards,
    and whether it is above a third and two thirds of the scale. Rising and falling are two bits, so that flat areas are alike
    whatever their noise.
    """
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.int16)
    bits = [small > 85, small > 170]
    for axis in (0, 1):
        step = np.diff(small, axis=axis)
        bits += [step > FLAT, step < -FLAT]
    return np.concatenate([some.ravel() for some in bits])
