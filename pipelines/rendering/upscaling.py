"""Enlarges and restores pictures by super-resolution networks (ESRGAN, SwinIR, DAT and others), in tiles of one fixed shape.

Every call of the network has one tile of the same shape, so that the bits of a picture depend on the picture alone, and memory on
the tile. Neighbouring tiles overlap, and go over into each other by a linear ramp.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptmill.pipelines.rendering.spandrel_models import load_descriptor, put_on_device
from promptmill.pipelines.work.errors import ModelError

TILE, OVERLAP = 256, 32  # pixels of the picture that is enlarged


@dataclass(frozen=True)
class Upscaler:
    """Holds a loaded network, and enlarges pictures with it.

    Attributes:
        name: What errors call it.
        network: A `spandrel.ImageModelDescriptor`.
        tile: Width and height of every tile, in pixels of the picture.
        overlap: How many pixels neighbouring tiles share at least.
    """

    name: str
    network: Any
    tile: int
    overlap: int

    @property
    def scale(self) -> int:
        """Return how many times wider and higher pictures become; 1 for a network that restores."""
        return int(self.network.scale)

    @property
    def architecture(self) -> str:
        """Return the name of the architecture, as in `ESRGAN`."""
        return str(self.network.architecture.name)

    def upscale(self, pixels: np.ndarray) -> np.ndarray:
        """Enlarge a picture, (H, W, 3) uint8 to (H·scale, W·scale, 3) uint8.

        The caller has the turn of the process (`COMPUTING`) and has set the number of threads, on which the bits depend as well.

        Raises:
            ModelError: The network gives values that are not finite.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError(f"a picture is (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
        height, width = pixels.shape[:2]
        padded = _padded(pixels, self.tile)
        down, across = (_Cut.of(side, self.tile, self.overlap, self.scale) for side in padded.shape[:2])
        done = np.empty((height * self.scale, width * self.scale, 3), np.uint8)
        # Of the enlarged picture, in fp32, only the rows of one tile are held at a time: those that later tiles still add to.
        rows = np.zeros((down.size, across.enlarged, 3), np.float32)
        for number, top in enumerate(down.starts):
            band = np.zeros_like(rows)
            for left, weight in zip(across.starts, across.weights, strict=True):
                place = slice(left * self.scale, left * self.scale + across.size)
                band[:, place] += self._enlarged(padded[top : top + self.tile, left : left + self.tile]) * weight[:, None]
            rows += band * down.weights[number][:, None, None]
            begin = top * self.scale
            whole = down.enlarged - begin if number + 1 == len(down.starts) else (down.starts[number + 1] - top) * self.scale
            some = rows[: max(0, min(whole, len(done) - begin)), : done.shape[1]]
            done[begin : begin + len(some)] = np.rint(some.clip(0, 1) * 255).astype(np.uint8)
            rows = np.concatenate([rows[whole:], np.zeros_like(rows[:whole])])
        return done

    def _enlarged(self, tile: np.ndarray) -> np.ndarray:
        """Return a tile as the network enlarges it, (T, T, 3) uint8 to (T·scale, T·scale, 3) float32 in [0, 1]."""
        inputs = torch.from_numpy(np.ascontiguousarray(tile.transpose(2, 0, 1)))[None].to(self.network.device)
        outputs = self.network(inputs.to(self.network.dtype) / 255)[0].permute(1, 2, 0).float().cpu().numpy()
        if not np.isfinite(outputs).all():
            raise ModelError(f"{self.name}: gives values that are not finite in {str(self.network.dtype).removeprefix('torch.')}")
        return np.asarray(outputs)


@dataclass(frozen=True)
class _Cut:
    """Holds how one side of a picture is cut into tiles.

    Attributes:
        starts: Where each tile begins, in pixels of the picture.
        weights: For each tile its share of each of its enlarged pixels, (size,) float32; the shares of a pixel are 1 together.
        size: The side of an enlarged tile, in pixels.
        enlarged: The side of the enlarged picture, in pixels.
    """

    starts: tuple[int, ...]
    weights: tuple[np.ndarray, ...]
    size: int
    enlarged: int

    @classmethod
    def of(cls, side: int, tile: int, overlap: int, scale: int) -> "_Cut":
        """Cut a side of at least one tile; the last tile ends where the side ends, and so overlaps by more than the others."""
        starts = (*range(0, side - tile, tile - overlap), side - tile)
        size, enlarged, shared = tile * scale, side * scale, overlap * scale
        # At its very edge a tile lacks the surroundings that the network sees elsewhere: a quarter of the overlap does not count.
        aside = shared // 4
        ramp = np.clip((np.arange(shared, dtype=np.float64) + 0.5 - aside) / max(1, shared - 2 * aside), 0, 1)
        raw = []
        for start in starts:
            weight = np.ones(size)
            if start > 0:
                weight[:shared] = ramp
            if start + tile < side:
                weight[size - shared :] *= ramp[::-1]
            raw.append(weight)
        total = np.zeros(enlarged)
        for start, weight in zip(starts, raw, strict=True):
            total[start * scale : start * scale + size] += weight
        weights = (
            (weight / total[start * scale : start * scale + size]).astype(np.float32)
            for start, weight in zip(starts, raw, strict=True)
        )
        return cls(starts, tuple(weights), size, enlarged)


def _padded(pixels: np.ndarray, tile: int) -> np.ndarray:
    """Return a picture of at least one tile: at the right and at the bottom reflected, and beyond that its last pixel repeated."""
    height, width = pixels.shape[:2]
    down, across = max(0, tile - height), max(0, tile - width)
    mirrored = np.pad(pixels, ((0, min(down, height - 1)), (0, min(across, width - 1)), (0, 0)), "reflect")
    more = (max(0, tile - mirrored.shape[0]), max(0, tile - mirrored.shape[1]))
    return np.pad(mirrored, ((0, more[0]), (0, more[1]), (0, 0)), "edge")


def load_upscaler(
    file: Path,
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Upscaler:
    """Load a network that enlarges or restores pictures from a safetensors file.

    Args:
        file: The file.
        name: What errors call it.
        dtype, device: Of the weights and of what is computed.
        tile: Width and height of a tile in pixels; it grows to what the architecture needs.
        overlap: Pixels that neighbouring tiles share, at most half a tile.

    Raises:
        ModelError: As `load_descriptor` and `put_on_device`; or the overlap does not fit the tile.
    """
    loaded = load_descriptor(file, name, ("SR", "Restoration"))
    put_on_device(loaded, name, dtype, device or torch.device("cpu"))
    tile += max(loaded.size_requirements.get_padding(tile, tile))
    if not 0 <= overlap <= tile // 2:
        raise ModelError(f"{name}: tiles of {tile} pixels can overlap by 0 to {tile // 2} pixels, not by {overlap}")
    return Upscaler(name, loaded, tile, overlap)
