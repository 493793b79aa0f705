"""Computes the sizes that pipelines of some families render, as these pipelines compute them."""

import math
from collections.abc import Mapping
from typing import Any


def pixels(request: Any) -> int:
    """Return the pixels of a request's images."""
    return request.width * request.height


def side(request: Any) -> float:
    """Return the side of a square with as many pixels as a request's images."""
    return math.sqrt(pixels(request))


def a_million_pixels(width: int, height: int) -> tuple[int, int]:
    """Return the size with sides of multiples of 32 that has the aspect of another and 1024 x 1024 pixels, or nearly so many."""
    ratio = width / height
    wide = math.sqrt(1024 * 1024 * ratio)
    return round(wide / 32) * 32, round(wide / ratio / 32) * 32


def about_a_million_pixels(width: int, height: int) -> tuple[int, int]:
    """Return the size with sides of multiples of 16 that has the aspect of another and 1024 x 1024 pixels, or a little more."""
    ratio = width / height
    wide = math.sqrt(1024 * 1024 * ratio)
    return math.ceil(wide / 16) * 16, math.ceil(wide / ratio / 16) * 16


def own_side(request: Any, scale: int) -> float:
    """Return the side of a square, in latents, with as many pixels as a request's images, and a little more: nothing is cut."""
    return side(request) / scale * (1 + 1e-9)


def staged_multiple(decoder: Mapping[str, Any], prior: Mapping[str, Any], factor: int) -> int:
    """Return the pixels that sides are multiples of where a prior's embeddings have a size that the decoder's latents follow.

    Both sizes are rounded, by numbers of the two indexes (arXiv:2306.00637); the images are four times as large as the latents.
    """
    smaller, larger = float(prior.get("resolution_multiple") or 42.67), float(decoder.get("latent_dim_scale") or 10.67)

    def is_kept(side: int) -> bool:
        return int(math.ceil(side / smaller) * larger) * 4 == side

    return next(side for side in range(8, 2**16, 8) if all(is_kept(times * side) for times in range(1, 9)))
