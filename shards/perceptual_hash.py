"""Computes the perceptual hash of an image: 64 bits that stay much the same when it is scaled, compressed or slightly changed.

The hash is a DCT hash, as C. Zauner describes it ("Implementation and Benchmarking of Perceptual Image Hash Functions", 2010): the
lowest 8 x 8 frequencies of the image at 32 x 32 in grey, each against their median. The hash sees shapes and is blind to colour, so
`colours` goes with it. All is computed in integers: the same bits on every machine.
"""

import numpy as np
from PIL import Image

BITS = 64
SIDE = 32  # pixels of the small image
FREQUENCIES = 8  # of each direction
SCALE = 2**14  # of the cosines as integers; sums of 32 x 32 products of two of them and 8 bits stay below 2**47

_PLACES = 2 * np.arange(SIDE) + 1
_COSINES = np.rint(SCALE * np.cos(np.pi * np.outer(np.arange(FREQUENCIES), _PLACES) / (2 * SIDE))).astype(np.int64)

CELLS = 4  # a side, whose mean colours are compared
# Levels of 255. Flat pictures of the embedded family that are moved by a pixel, compressed or made noisy differ by 13 at most; of
# 62 pairs of different ones whose hashes are within 6 bits, all but one differ by more than this.
SAME_COLOURS = 24


def phash(image: Image.Image) -> int:
    """Return the perceptual hash of an image, from 0 to 2**64 - 1; 0 for an image without any structure.

    Args:
        image: An image of any size and mode.
    """
    grey = image.convert("RGB").convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    frequencies = (_COSINES @ np.asarray(grey, np.int64) @ _COSINES.T).ravel()
    # The first is the mean brightness, which says nothing of what is to be seen.
    bits = frequencies > np.sort(frequencies[1:])[(BITS - 1) // 2]
    bits[0] = False
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(first: int, second: int) -> int:
    """Return in how many of the 64 bits two hashes differ: 0 for the same image, about 32 for two that have nothing in common."""
    return (first ^ second).bit_count()


def colours(image: Image.Image) -> np.ndarray:
    """Return the mean colour of each of 4 x 4 cells of an image, (48,) int16, 0 to 255."""
    return np.asarray(image.convert("RGB").resize((CELLS, CELLS), Image.Resampling.BOX), np.int16).ravel()


def same_colours(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether no cell of one image differs from that of the other by more than `SAME_COLOURS`."""
    return bool(np.abs(first - second).max() <= SAME_COLOURS)
