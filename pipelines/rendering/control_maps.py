"""Makes control maps of pictures, and keeps them.

Those without a model are made here, by OpenCV: the same pixels for the same picture on any number of threads. The annotators of a
config make the others.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch

from promptmill.configs.preprocessors import parse_preprocess
from promptmill.pipelines.rendering.annotators import Annotators, is_annotated

MOST_BYTES = 256 * 1024**2  # of maps that are kept
FAST_SIGMA = 16  # pixels; up to twice as wide a Gaussian is computed as it is
FINDING = {"pose": "nobody", "sam": "no segment"}  # by preprocessor whose map may rightly be black, what it then says
NARROW, WIDE = 0.5 / 512, 5 / 512  # the sigmas of the two blurred pictures of a scribble, in short sides


def control_map(preprocess: str, image: np.ndarray, annotators: Annotators | None = None) -> np.ndarray:
    """Make a control map of a prepared picture; the same pixels always give the same map.

    Args:
        preprocess: A name of `configs.preprocessors`, perhaps with parameters, as `canny(low=50)`.
        image: (H, W, 3) uint8.
        annotators: The models for the preprocessors that need one.

    Returns:
        (H, W, 3) uint8, never the array that was given.

    Raises:
        ModelError, MapError: As `Annotators.map`.
    """
    if is_annotated(preprocess):
        return (annotators or Annotators({}, torch.device("cpu"))).map(preprocess, image)
    name, values = parse_preprocess(preprocess)
    return MAPS[name](np.ascontiguousarray(image), **values)


def canny(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return a map of edges, 255 on 0, by the strongest of the three channels (Canny, 1986)."""
    return _three(cv2.Canny(image, low, high))


def lines(image: np.ndarray, length: float) -> np.ndarray:
    """Return a map of straight lines, 255 on 0, one pixel wide: by LSD (von Gioi et al., 2010), in the place of MLSD's network.

    Args:
        image: (H, W, 3) uint8.
        length: The length of the shortest line that is drawn, in short sides.
    """
    found = cv2.createLineSegmentDetector(cv2.LSD_REFINE_STD).detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    drawn = np.zeros(image.shape[:2], np.uint8)
    shortest = length * min(drawn.shape)
    for x1, y1, x2, y2 in [] if found is None else found.reshape(-1, 4).tolist():
        if np.hypot(x2 - x1, y2 - y1) >= shortest:
            cv2.line(drawn, (round(x1), round(y1)), (round(x2), round(y2)), 255, 1)
    return _three(drawn)


def scribble(image: np.ndarray, threshold: float) -> np.ndarray:
    """Return a map of dark strokes on brighter ground, 255 on 0, by the difference of Gaussians (XDoG, Winnemöller et al., 2012).

    Args:
        image: (H, W, 3) uint8.
        threshold: How many levels darker than its surroundings a stroke is, in the channel where the difference is the greatest.
    """
    side = min(image.shape[:2])
    fine, coarse = (cv2.GaussianBlur(image.astype(np.float32), (0, 0), max(0.1, sigma * side)) for sigma in (NARROW, WIDE))
    return _three(np.where((coarse - fine).max(-1) > threshold, 255, 0).astype(np.uint8))


def grey(image: np.ndarray) -> np.ndarray:
    """Return the luminance (Rec. 601) in three equal channels."""
    return _three(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return a picture blurred by a Gaussian; `sigma` is in short sides.

    By a wide Gaussian, whose kernel would take minutes, a picture is blurred scaled down, and scaled back up.
    """
    height, width = image.shape[:2]
    wide = sigma * min(height, width)
    if wide < 2 * FAST_SIGMA:
        return cv2.GaussianBlur(image, (0, 0), wide)
    times = int(wide // FAST_SIGMA)
    small = (max(1, width // times), max(1, height // times))
    scaled = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(scaled, (0, 0), wide * small[0] / width, sigmaY=wide * small[1] / height)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)


def tile(image: np.ndarray, rate: float) -> np.ndarray:
    """Return a picture scaled down `rate` times by area and back up (bicubic)."""
    height, width = image.shape[:2]
    small = (max(1, width // int(rate)), max(1, height // int(rate)))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_CUBIC)


def shuffle(image: np.ndarray, seed: float) -> np.ndarray:
    """Return a picture whose pixels are moved by a smooth random flow, as ControlNet's shuffle: colours stay, content goes.

    Args:
        image: (H, W, 3) uint8.
        seed: Of the flow's random numbers.
    """
    height, width = image.shape[:2]
    rng = np.random.default_rng(int(seed))
    across, down = (_noise(rng, height, width) * (side - 1) for side in (width, height))
    return cv2.remap(image, across, down, cv2.INTER_LINEAR)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return smooth noise, (H, W) float32 from 0 to 1, with a random value each half of the shorter side."""
    wave = max(1, min(height, width) // 2)
    grid = rng.random((height // wave + 2, width // wave + 2), np.float32)
    size = (grid.shape[1] * wave, grid.shape[0] * wave)
    smooth = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)[wave // 2 :, wave // 2 :][:height, :width]
    return (smooth - smooth.min()) / max(1e-6, float(np.ptp(smooth)))


def masked(image: np.ndarray, repaint: np.ndarray) -> np.ndarray:
    """Return a map in which pixels that are repainted have -1, where others are in 0 … 1: ControlNet 1.1's for inpainting.

    Args:
        image: (H, W, 3) uint8.
        repaint: (H, W) bool.

    Returns:
        (H, W, 3) int16, in 255ths.
    """
    return np.where(repaint[..., None], np.int16(-255), image.astype(np.int16))


def _three(one: np.ndarray) -> np.ndarray:
    return np.repeat(one[..., None], 3, axis=-1)


# By the names of `configs.preprocessors`, whose parameters are the functions' own.
MAPS: dict[str, Callable[..., np.ndarray]] = {
    "none": lambda image: image.copy(),
    "inpaint": lambda image: image.copy(),  # until `masked` takes pixels away
    "canny": canny,
    "lines": lines,
    "scribble": scribble,
    "grey": grey,
    "blur": blur,
    "tile": tile,
    "shuffle": shuffle,
    "invert": lambda image: 255 - image,
}


@dataclass
class ControlMaps:
    """Keeps the maps that were made last, so that rows of one photograph share its maps; for several threads.

    Attributes:
        annotators: The models for the maps that need one; None: no such map is made.
        made: How many maps were made.
    """

    annotators: Annotators | None = None
    made: int = 0
    _kept: OrderedDict[Hashable, np.ndarray] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _door: threading.Lock = field(default_factory=threading.Lock)

    def get(self, sha256: str, preprocess: str, size: tuple[int, int], prepared: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the map of a picture, (H, W, 3) uint8, which nobody may write to.

        Args:
            sha256: Of the picture's file.
            preprocess: How the map is made.
            size: Width and height of the map, in pixels.
            prepared: Returns the picture, (H, W, 3) uint8; called where the map has to be made.

        Raises:
            ModelError, MapError: As `Annotators.map`.
        """
        key = (sha256, preprocess, size)
        with self._door:  # held while a map is made, so that no other thread makes it too
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            made = control_map(preprocess, prepared(), self.annotators)
            name = parse_preprocess(preprocess)[0]
            if name in FINDING and not made.any():
                said = "%s: %s is found in the picture of SHA-256 %s; its map is empty"
                logging.getLogger(__name__).warning(said, name, FINDING[name], sha256)
            self._kept[key] = made
            made.flags.writeable = False
            self.made += 1
            self._bytes += made.nbytes
            while self._bytes > MOST_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return made
