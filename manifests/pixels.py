"""Converts pictures of any mode to 8-bit levels and crops pictures to a wanted size, for masks and for conditioning."""

import numpy as np
from PIL import Image, ImageCms


def to_rgb(image: Image.Image, ground: str = "white") -> Image.Image:
    """Return the 8-bit RGB of a picture of any mode, with transparent parts laid on a plain ground."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(levels(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    if image.mode == "LAB":  # the one mode that Pillow does not convert without a profile
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    return image.convert("RGB")


def levels(values: np.ndarray) -> np.ndarray:
    """Return grey values beyond 8 bits as levels, uint8 of the same shape.

    Integers from 0 to 65535 are taken as 16 bits, floats from 0 to 1 as shares of white and up to 255 as levels. Any other range is
    stretched, its least to black and its greatest to white. Values that are not finite become black.
    """
    finite = np.isfinite(values)
    grey = np.where(finite, values, 0).astype(np.float64)
    low, high = (float(grey[finite].min()), float(grey[finite].max())) if finite.any() else (0.0, 0.0)
    white = 65535.0 if values.dtype.kind in "iu" else 1.0 if high <= 1 else 255.0
    if low < 0 or high > white:
        grey, white = np.where(finite, grey - low, 0), (high - low) or 1.0
    return np.rint(grey * 255 / white).astype(np.uint8)


def cover(
    image: Image.Image, width: int, height: int, resample: Image.Resampling, part: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """Return the largest centred part of a picture that has the wanted aspect, at the wanted size in pixels.

    With a `part` of the result, as left, top, right and bottom in its pixels, that part alone is returned, scaled to the wanted
    size from the picture's own pixels.
    """
    wide = image.width * height >= image.height * width  # wider than wanted: its sides go
    across, down = (image.height * width / height, image.height) if wide else (image.width, image.width * height / width)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    if (across, down) == (width, height):  # nothing is scaled, so half a pixel must not be either
        left, top = left // 1, top // 1
    box = left, top, left + across, top + down
    if part is not None and part != (0, 0, width, height):
        x, y = across / width, down / height
        right, bottom = min(left + part[2] * x, image.width), min(top + part[3] * y, image.height)
        box = left + part[0] * x, top + part[1] * y, right, bottom
    return image.resize((width, height), resample, box=box)
