"""Makes a CLIP's input from images, a batch at a time, as open_clip's own transform of PIL images would.

Resized pixels differ from the transform's by at most `TOLERANCE` of 255 levels, after which the arithmetic is the same. An image's
tensor does not depend on the rest of the batch: the resampling is in integers, the rest is element by element.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from promptmill.pipelines.scoring.libraries import PreprocessCfg

TOLERANCE = {"bilinear": 1, "bicubic": 2}  # levels
CHANNELS = 3


def preprocess(images: Sequence[np.ndarray], config: PreprocessCfg) -> Tensor:
    """Resize, crop or pad, and normalise images.

    Args:
        images: (H, W, 3) uint8 each, of any sizes.
        config: As the model has it in `visual.preprocess_cfg`.

    Returns:
        (B, 3, *config.size) fp32 on the CPU.

    Raises:
        ValueError: An array has another shape or dtype.
    """
    height, width = _pair(config.size)
    made = torch.empty(len(images), CHANNELS, height, width)
    for size, places in _by_size(images).items():
        pixels = torch.from_numpy(np.stack([images[i] for i in places])).permute(0, 3, 1, 2)
        target = _resized(size, (height, width), config.resize_mode)
        squared = _resize(pixels, target, _interpolation(config))
        made[places] = _fit(squared, (height, width), config.fill_color).to(torch.float32)
    mean, std = (torch.tensor(_triple(value)).view(1, CHANNELS, 1, 1) for value in (config.mean, config.std))
    return made.div_(255).sub_(mean).div_(std)


def _by_size(images: Sequence[np.ndarray]) -> dict[tuple[int, int], list[int]]:
    places: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != CHANNELS or 0 in image.shape:
            raise ValueError(f"image {place} is {image.shape} {image.dtype}, not (H, W, 3) uint8")
        places.setdefault(image.shape[:2], []).append(place)
    return places


def _resized(size: tuple[int, int], target: tuple[int, int], mode: str) -> tuple[int, int]:
    """Return height and width after resizing and before cropping or padding, rounded as open_clip and torchvision round."""
    if mode == "squash":
        return target
    if mode == "shortest" and target[0] == target[1]:
        short, long = min(size), max(size)
        other = int(target[0] * long / short)
        return (target[0], other) if size[0] <= size[1] else (other, target[0])
    ratios = [side / wanted for side, wanted in zip(size, target, strict=True)]
    ratio = max(ratios) if mode == "longest" else min(ratios)
    height, width = (max(1, round(side / ratio)) for side in size)
    return height, width


def _interpolation(config: PreprocessCfg) -> str:
    # open_clip forgets the interpolation where it resizes the shortest side to an oblong.
    forgets = config.resize_mode == "shortest" and len(set(_pair(config.size))) > 1
    return "bilinear" if config.interpolation == "bilinear" and not forgets else "bicubic"


def _resize(pixels: Tensor, target: tuple[int, int], mode: str) -> Tensor:
    """Resample (B, 3, H, W) uint8 to uint8 with antialiasing, as Pillow does: one axis after the other, rounded in between."""
    height, width = pixels.shape[2:]
    # Since values are rounded in between, the order counts, by 30 levels on noise. torch takes the width first. Pillow 13 takes the
    # height first where more than twice as many rows as columns are lost.
    if height - target[0] > 2 * max(width - target[1], 0):
        pixels = F.interpolate(pixels, size=(target[0], width), mode=mode, antialias=True)
    return F.interpolate(pixels, size=target, mode=mode, antialias=True)


def _fit(pixels: Tensor, target: tuple[int, int], fill: int) -> Tensor:
    """Return the middle of (B, 3, H, W), with a border where the picture is too small."""
    missing = [max(0, wanted - side) for wanted, side in zip(target, pixels.shape[2:], strict=True)]
    if any(missing):
        border = [part for lack in reversed(missing) for part in (lack // 2, lack - lack // 2)]
        pixels = F.pad(pixels, border, value=fill)
    top, left = (round((side - wanted) / 2) for wanted, side in zip(target, pixels.shape[2:], strict=True))
    return pixels[:, :, top : top + target[0], left : left + target[1]]


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def _triple(value: Any) -> list[float]:
    return [float(v) for v in value] if isinstance(value, list | tuple) else [float(value)] * CHANNELS
