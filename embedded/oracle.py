"""Reads a picture of the world without any model, and lists where the picture differs from a prompt.

The frame of the picture gives the background. The pixels that differ from the background fall into connected blobs. A blob's extent
gives size and place; the colour of its inside gives its colour. Each of the four shapes is drawn as well as it can be to that
extent, and the shape that covers most nearly the same pixels is the blob's shape.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from promptmill.embedded.pictures import CENTERS, HALF_EXTENT, RGB, SIDE, cover
from promptmill.embedded.world import COLORS, SHAPES, Scene, Thing, parse

FRAME = 2  # pixels: no object comes nearer to the border
OBJECT_LEVELS = 48.0  # RGB distance from the background at which a pixel may belong to an object
SPECK_PIXELS = 12  # smaller blobs are noise; the smallest object has over 60 pixels
GHOST_LEVELS = 30.0  # RGB distance from the background beyond which a pixel far from any object is no background either
GHOST_PIXELS = 40  # that many of them make the background not plain
OF_ONE_COLOR = 0.85  # share of an object's inside that has to be of its colour
COLOR_LEVELS = 75.0  # RGB distance up to which a colour still has a name
PLACE_TOLERANCE = 0.09  # sides; places are at least 0.23 apart
SIZE_TOLERANCE = 0.045  # sides; small and large are 0.08 apart
SHAPE_AGREEMENT = 0.80  # least intersection over union with the ideal shape
SHAPE_MARGIN = 0.03  # by which the best shape must beat the second
FIT_GROWTH = (-0.5, 0.0, 0.5, 1.0)  # of the half-extent, in pixels
FIT_SHIFT = (-1.0, -0.5, 0.0, 0.5)  # of the centre, downwards, in pixels


@dataclass(frozen=True)
class Seen:
    """Holds one blob as the oracle sees it; a word that fits nothing of this world is None.

    Attributes:
        shape, color, size, place: The words, or None where none fits.
        center: x and y, in sides of the picture.
        half_extent: Half the width and half the height of the blob's bounding box, in sides.
        rgb: Median colour of the blob's inside, 0..255.
        mask: (64, 64) bool, the pixels that the blob covers by half or more.
    """

    shape: str | None
    color: str | None
    size: str | None
    place: str | None
    center: tuple[float, float]
    half_extent: tuple[float, float]
    rgb: tuple[int, int, int]
    mask: np.ndarray

    def words(self) -> str:
        return f"{self.size or 'odd-sized'} {self.color or 'odd-coloured'} {self.shape or 'shapeless blob'} at {self.spot()}"

    def spot(self) -> str:
        return f"the {self.place}" if self.place else f"({self.center[0]:.2f}, {self.center[1]:.2f})"


@dataclass(frozen=True)
class Reading:
    """Holds the oracle's reading of one picture: background, blobs and specks.

    Attributes:
        background: The background's colour; None where the colour has no name or is not plain.
        background_rgb: The background's median colour, 0..255.
        seen: The blobs, from the top left to the bottom right.
        specks: Pixels in blobs that are too small to be objects.
    """

    background: str | None
    background_rgb: tuple[int, int, int]
    seen: tuple[Seen, ...]
    specks: int = 0


def read(pixels: np.ndarray) -> Reading:
    """Read one picture, (64, 64, 3) uint8 sRGB.

    Raises:
        ValueError: The array has another shape or dtype.
    """
    if pixels.shape != (SIDE, SIDE, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"the oracle reads ({SIDE}, {SIDE}, 3) uint8 pictures, not {pixels.shape} {pixels.dtype}")
    picture = pixels.astype(np.float32)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    frame = picture[~inside]
    ground = np.median(frame, axis=0)
    plain = np.mean(np.linalg.norm(frame - ground, axis=1) < OBJECT_LEVELS) > 0.9

    away = np.linalg.norm(picture - ground, axis=2)
    # A pixel fainter than half of what stands beside it is an edge or a smear between two objects, and joins nothing.
    solid = away > np.maximum(OBJECT_LEVELS, 0.5 * ndimage.maximum_filter(away, 5))
    labels, count = ndimage.label(solid)
    blobs = [labels == i for i in range(1, count + 1)]
    seen = [_see(picture, ground, blob, solid & ~blob) for blob in blobs if np.count_nonzero(blob) >= SPECK_PIXELS]
    specks = sum(size for size in map(np.count_nonzero, blobs) if size < SPECK_PIXELS)
    around = ndimage.binary_dilation(solid, iterations=4)
    plain &= np.count_nonzero((away > GHOST_LEVELS) & ~around) < GHOST_PIXELS
    seen.sort(key=lambda s: (s.center[0] + s.center[1], s.center))
    return Reading(_name_color(ground) if plain else None, _levels(ground), tuple(seen), int(specks))


def _see(picture: np.ndarray, ground: np.ndarray, blob: np.ndarray, others: np.ndarray) -> Seen:
    core = ndimage.binary_erosion(blob, iterations=2)
    if np.count_nonzero(core) < 4:
        core = ndimage.binary_erosion(blob)
    within = picture[core if core.any() else blob]
    color = np.median(within, axis=0)
    of_one_color = np.mean(np.linalg.norm(within - color, axis=1) < COLOR_LEVELS) >= OF_ONE_COLOR

    # How far the object covers a pixel: where its colour lies between the background's and the object's.
    axis = color - ground
    near = ndimage.binary_dilation(blob, iterations=2) & ~ndimage.binary_dilation(others)
    alpha = np.clip((picture - ground) @ axis / max(float(axis @ axis), 1.0), 0, 1) * near
    mask = (alpha > 0.5) & near
    if not mask.any():
        mask = blob
    center, half = _extent(mask, alpha)
    return Seen(
        shape=_name_shape(mask, alpha, center, half),
        color=_name_color(color) if of_one_color else None,
        size=_name_size(half),
        place=_name_place(center),
        center=(float(center[0]), float(center[1])),
        half_extent=(float(half[0]), float(half[1])),
        rgb=_levels(color),
        mask=mask,
    )


def _extent(mask: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and half-extents (x, y) of a blob's bounding box, in sides, exact to a fraction of a pixel."""
    low, high = np.zeros(2), np.zeros(2)
    for dimension in (0, 1):  # x, then y
        profile = np.where(mask, alpha, 0).max(axis=dimension)
        soft = alpha.max(axis=dimension)
        covered = np.flatnonzero(profile > 0)
        first, last = covered[0], covered[-1]
        before = soft[first - 1] if first > 0 else 0.0
        after = soft[last + 1] if last + 1 < SIDE else 0.0
        # The pixel at an end counts by its coverage, and so does the fainter one beyond it.
        low[dimension] = first + 1 - soft[first] - (before if before > 0.1 else 0)
        high[dimension] = last + soft[last] + (after if after > 0.1 else 0)
    return (low + high) / 2 / SIDE, (high - low) / 2 / SIDE


def _name_shape(mask: np.ndarray, alpha: np.ndarray, center: np.ndarray, half: np.ndarray) -> str | None:
    # An extent is off by a pixel where a thin end (the apex of a triangle) has faded: so growth and shift are fitted.
    index, growth, shift = np.meshgrid(np.arange(len(SHAPES)), FIT_GROWTH, FIT_SHIFT, indexing="ij")
    centers = np.stack([np.full(index.shape, center[0]), center[1] + shift / SIDE], axis=-1)
    halves = half.mean() + growth / SIDE
    ideal = cover(index, centers.astype(np.float32), halves.astype(np.float32))
    fits = np.minimum(ideal, alpha).sum(axis=(-2, -1)) / np.maximum(ideal, alpha).sum(axis=(-2, -1))
    agreement = fits.max(axis=(1, 2))
    best, second = np.argsort(agreement)[::-1][:2]
    squarish = 0.75 < half[0] / max(half[1], 1e-6) < 1.33
    if agreement[best] < SHAPE_AGREEMENT or agreement[best] - agreement[second] < SHAPE_MARGIN or not squarish:
        return None
    return SHAPES[best]


def _name_size(half: np.ndarray) -> str | None:
    extent = float(half.mean())
    size = min(HALF_EXTENT, key=lambda name: abs(HALF_EXTENT[name] - extent))
    return size if abs(HALF_EXTENT[size] - extent) < SIZE_TOLERANCE else None


def _name_place(center: np.ndarray) -> str | None:
    place = min(CENTERS, key=lambda name: np.hypot(*(np.array(CENTERS[name]) - center)))
    return place if np.hypot(*(np.array(CENTERS[place]) - center)) < PLACE_TOLERANCE else None


def _name_color(rgb: np.ndarray) -> str | None:
    color = min(COLORS, key=lambda name: np.linalg.norm(np.array(RGB[name]) - rgb))
    return color if np.linalg.norm(np.array(RGB[color]) - rgb) < COLOR_LEVELS else None


def _levels(rgb: np.ndarray) -> tuple[int, int, int]:
    return (round(float(rgb[0])), round(float(rgb[1])), round(float(rgb[2])))


def differences(prompt: str | Scene, picture: np.ndarray | Reading) -> list[str]:
    """List the faults of a picture, one line each; the list is empty where every attribute that the prompt names is right.

    Args:
        prompt: A prompt of the world, or the scene that a prompt describes. An attribute that the prompt leaves unsaid may be
            anything of the world: an unnamed place still has to be one of the five, a shape still has to be a shape.
        picture: (64, 64, 3) uint8, or the result of `read`.

    Raises:
        PromptError: The prompt is not of the world.
    """
    scene = parse(prompt) if isinstance(prompt, str) else prompt
    reading = picture if isinstance(picture, Reading) else read(picture)
    wrong = []
    if reading.background != scene.background:
        found = reading.background or f"nothing with a name, rgb{reading.background_rgb}"
        wrong.append(f"background: {found}, not {scene.background}")
    pairs, missing, extra = _match(scene, reading)
    for thing, seen in pairs:
        wrong.extend(_compare(thing, seen))
    wrong.extend(f"missing: {_named(thing)}" for thing in missing)
    wrong.extend(f"extra: a {seen.words()}" for seen in extra)
    if reading.specks >= SPECK_PIXELS:
        wrong.append(f"extra: specks, {reading.specks} pixels in all")
    return wrong


def is_right(prompt: str | Scene, picture: np.ndarray | Reading) -> bool:
    """Return whether every attribute that the prompt names is right in the picture, and no other object is there."""
    return not differences(prompt, picture)


def _match(scene: Scene, reading: Reading) -> tuple[list[tuple[Thing, Seen]], list[Thing], list[Seen]]:
    """Pair objects with blobs so that the fewest attributes are wrong, places weighing most."""

    def cost(thing: Thing, seen: Seen) -> float:
        misplaced = 0.0 if thing.place is None else float(np.hypot(*np.subtract(CENTERS[thing.place], seen.center)))
        return len(_compare(thing, seen)) + 8 * misplaced

    left, free, pairs = list(scene.things), list(reading.seen), []
    if len(left) == 2 and len(free) >= 2:
        options = [(a, b) for a in free for b in free if a is not b]
        best = min(options, key=lambda pair: cost(left[0], pair[0]) + cost(left[1], pair[1]))
        pairs = list(zip(left, best, strict=True))
    elif left and free:
        pairs = [min(((t, s) for t in left for s in free), key=lambda pair: cost(*pair))]
    for thing, seen in pairs:
        left = [t for t in left if t is not thing]
        free = [s for s in free if s is not seen]
    return pairs, left, free


def _compare(thing: Thing, seen: Seen) -> list[str]:
    what = f"{thing.shape} at the {thing.place}" if thing.place else thing.shape
    wrong = []
    if seen.shape != thing.shape:
        wrong.append(f"{what}: shape is {seen.shape or 'none of the four'}, not {thing.shape}")
    if seen.color != thing.color:
        wrong.append(f"{what}: colour is {seen.color or f'nothing with a name, rgb{seen.rgb}'}, not {thing.color}")
    if seen.size is None or thing.size not in (None, seen.size):
        extent = f"{np.mean(seen.half_extent):.2f} of the side"
        wrong.append(f"{what}: size is {seen.size or extent}, not {thing.size or 'small or large'}")
    if seen.place is None or thing.place not in (None, seen.place):
        wrong.append(f"{what}: place is {seen.spot()}, not {'the ' + thing.place if thing.place else 'one of the five'}")
    return wrong


def _named(thing: Thing) -> str:
    words = [thing.size, thing.color, thing.shape]
    return "a " + " ".join(w for w in words if w) + (f" at the {thing.place}" if thing.place else "")
