"""Draws scenes as anti-aliased pictures of 64x64 pixels, or of another side, with their segmentation and their canny maps.

Every shape is the set of points where a maximum (or a minimum of maxima) of linear or radial distances is negative, so the coverage
of a pixel is its clipped signed distance in pixels to that edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from promptmill.embedded.world import COLORS, PLACES, SHAPES, Scene

SIDE = 64  # pixels, where nothing else is said

# In sides of the picture, (x, y) from the top left.
CENTERS = {"left": (0.27, 0.5), "right": (0.73, 0.5), "top": (0.5, 0.27), "bottom": (0.5, 0.73), "center": (0.5, 0.5)}
HALF_EXTENT = {"small": 0.11, "large": 0.19}

# sRGB, 0..255.
RGB = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (245, 220, 50),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "white": (243, 243, 243),
    "black": (20, 20, 20),
}

# A little jitter: uniform, plus or minus.
CENTER_JITTER = 0.02  # sides
EXTENT_JITTER = 0.05  # of the half-extent
COLOR_JITTER = 10  # levels a channel

# One colour a class in a segmentation map: background, then the shapes.
SEGMENT_RGB = np.array([(0, 0, 0), (230, 60, 60), (60, 200, 80), (70, 110, 240), (240, 210, 60)], np.uint8)

CROSS_ARM = 0.36  # half-width of a cross's arms, in half-extents
CANNY_THRESHOLDS = (60, 150)


@dataclass(frozen=True)
class Pictures:
    """Holds a batch of B pictures of S x S pixels and the truth about them.

    Attributes:
        pixels: (B, S, S, 3) uint8, sRGB.
        coverage: (B, 2, S, S) float32 in [0, 1], how far each object covers each pixel; zeros for an object that is not there.
        labels: (B, S, S) uint8: 0 background, 1 + the index in `SHAPES` where an object covers half the pixel.
    """

    pixels: np.ndarray
    coverage: np.ndarray
    labels: np.ndarray


def draw(scenes: Sequence[Scene], rng: np.random.Generator, side: int = SIDE) -> Pictures:
    """Draw scenes whose sizes and places are all said, with jitter in place, size and colour.

    Args:
        scenes: The scenes.
        rng: The source of the jitter. Equal generators make the same pictures at every side.
        side: Width and height, in pixels.
    """
    count = len(scenes)
    center = np.full((count, 2, 2), 0.5, np.float32)
    half = np.zeros((count, 2), np.float32)
    shape = np.zeros((count, 2), np.intp)
    rgb = np.zeros((count, 3, 3), np.float32)  # background, first, second
    for b, scene in enumerate(scenes):
        rgb[b, 0] = RGB[scene.background]
        for i, thing in enumerate(scene.things):
            assert thing.place and thing.size, "a scene to be drawn says every size and place"
            center[b, i], half[b, i] = CENTERS[thing.place], HALF_EXTENT[thing.size]
            shape[b, i], rgb[b, i + 1] = SHAPES.index(thing.shape), RGB[thing.color]
    center += rng.uniform(-CENTER_JITTER, CENTER_JITTER, center.shape).astype(np.float32)
    half *= 1 + rng.uniform(-EXTENT_JITTER, EXTENT_JITTER, half.shape).astype(np.float32)
    rgb += rng.uniform(-COLOR_JITTER, COLOR_JITTER, rgb.shape).astype(np.float32)

    coverage = cover(shape, center, half, side)
    coverage[half == 0] = 0
    pixels = np.broadcast_to(rgb[:, 0, None, None], (count, side, side, 3)).copy()
    for i in range(2):
        alpha = coverage[:, i, :, :, None]
        pixels += alpha * (rgb[:, i + 1, None, None] - pixels)
    labels = ((coverage > 0.5) * (shape[:, :, None, None] + 1)).max(axis=1).astype(np.uint8)
    return Pictures(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), coverage, labels)


def cover(shape: np.ndarray, center: np.ndarray, half: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Compute how far shapes cover each pixel.

    Args:
        shape: (...) indices into `SHAPES`.
        center: (..., 2) x and y, in sides of the picture.
        half: (...) or (..., 2) half-extents (of x and of y), in sides.
        side: Width and height of the picture, in pixels.

    Returns:
        (..., side, side) float32 in [0, 1].
    """
    if half.ndim == shape.ndim:
        half = np.stack([half, half], axis=-1)
    grid = (np.arange(side, dtype=np.float32) + 0.5) / side
    rx, ry = half[..., 0, None, None], half[..., 1, None, None]
    x = grid[None, :] - center[..., 0, None, None]
    y = grid[:, None] - center[..., 1, None, None]
    ax, ay = np.abs(x), np.abs(y)
    tiny = np.float32(1e-6)
    ratio = np.minimum(rx, ry)
    distance = np.empty(np.broadcast_shapes(x.shape, y.shape), np.float32)
    # Computed shape by shape on its own members only: most of the cost of training data is here.
    for index, name in enumerate(SHAPES):
        mine = shape == index
        if not mine.any():
            continue
        mx, my, mrx, mry, mratio = x[mine], y[mine], rx[mine], ry[mine], ratio[mine]
        max_, may = ax[mine], ay[mine]
        if name == "circle":
            distance[mine] = (np.hypot(mx / (mrx + tiny), my / (mry + tiny)) - 1) * mratio
        elif name == "square":
            distance[mine] = np.maximum(max_ - mrx, may - mry)
        elif name == "triangle":  # apex up, base down: half its width at height t in [0, 1] is t * rx
            slope = mrx / (2 * mry + tiny)
            flank = (max_ - (my + mry) * slope) / np.sqrt(1 + slope**2)
            distance[mine] = np.maximum(flank, my - mry)
        else:
            wide = np.maximum(max_ - mrx, may - mry * CROSS_ARM)
            tall = np.maximum(max_ - mrx * CROSS_ARM, may - mry)
            distance[mine] = np.minimum(wide, tall)
    return np.clip(0.5 - distance * side, 0, 1)


def segmentation(labels: np.ndarray) -> np.ndarray:
    """Return the segmentation map of labels as a control image: (..., 64, 64) uint8 to (..., 64, 64, 3) uint8."""
    return SEGMENT_RGB[labels]


def canny(pixels: np.ndarray) -> np.ndarray:
    """Return the canny map of one picture, (64, 64, 3) uint8 to the same shape, edges 255 and all else 0 (Canny 1986, by OpenCV).

    Edges are looked for in each colour channel, since some colours of the world are equally bright.
    """
    edges = np.zeros(pixels.shape[:2], np.uint8)
    for channel in range(3):
        edges |= cv2.Canny(np.ascontiguousarray(pixels[..., channel]), *CANNY_THRESHOLDS)
    return np.repeat(edges[..., None], 3, axis=-1)


assert set(CENTERS) == set(PLACES) and set(RGB) == set(COLORS)
