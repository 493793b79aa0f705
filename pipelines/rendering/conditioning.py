"""Prepares conditioning images for the models: pictures in RGB at the wanted size, and masks.

One policy holds for all of them. A picture is brought to 8-bit RGB: transparency lies on white, colour profiles are not applied.
The picture is then scaled, its aspect kept, until it covers the wanted size, and cropped around its centre. So a mask and a control
image of the same shape as their init image stay aligned with it. promptmill.manifests.masks says how a mask is read. Further
pictures keep their aspect, since nothing has to be aligned with them.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from promptmill.manifests.pixels import cover, to_rgb

Part = tuple[int, int, int, int]  # left, top, right and bottom, in pixels
LEAST_SIDE = 64  # of further pictures, in pixels, as FLUX.2's pipeline wants it


def prepare(image: Image.Image, width: int, height: int, part: Part | None = None) -> np.ndarray:
    """Bring a picture, or a part of what it becomes, to RGB and to the wanted size.

    Scaling is Lanczos with antialiasing; where nothing needs to be scaled the pixels stay the same.

    Args:
        image: A picture of any mode that a file can have, turned already as its EXIF says.
        width, height: In pixels.
        part: As `cover` has it.

    Returns:
        (height, width, 3) uint8, sRGB.
    """
    return np.array(cover(to_rgb(image), width, height, Image.Resampling.LANCZOS, part))


def further(image: Image.Image, pixels: int) -> np.ndarray:
    """Bring a further picture to RGB and to about so many pixels, its aspect kept and no side below `LEAST_SIDE`.

    Args:
        image: As for `prepare`.
        pixels: Those of the images that are rendered.

    Returns:
        (height, width, 3) uint8, sRGB; its longer side by its shorter one is never more than that of `image`.
    """
    short, long = sorted(image.size)
    scale = max(math.sqrt(pixels / (short * long)), LEAST_SIDE / short)
    # Rounded first, so that a whole number stays whole.
    least = math.ceil(round(short * scale, 6))
    most = max(least, math.floor(round(long * scale, 6)))
    return prepare(image, *((most, least) if image.width > image.height else (least, most)))


@dataclass(frozen=True)
class Whole:
    """Holds a picture of which the model renders only a part, scaled up.

    Attributes:
        picture: (H, W, 3) uint8.
        mask: (H, W) bool, true where the picture is repainted.
        part: The part that is rendered.
    """

    picture: np.ndarray
    mask: np.ndarray
    part: Part

    def part_of_mask(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the mask that the model gets, bool: the part, scaled by nearest neighbour.

        Args:
            size: Width and height in pixels; those of the picture where not given.
        """
        size = size or self.mask.shape[::-1]
        part = Image.fromarray(self.mask).convert("L").resize(size, Image.Resampling.NEAREST, self.part)
        return np.asarray(part) >= 128

    def with_part(self, rendered: np.ndarray) -> np.ndarray:
        """Return the picture with the rendered part scaled down to its place; (H, W, 3) uint8 in and out."""
        left, top, right, bottom = self.part
        made = self.picture.copy()
        made[top:bottom, left:right] = np.asarray(
            Image.fromarray(rendered).resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        )
        return made


def composite(original: np.ndarray, rendered: np.ndarray, mask: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
    """Return the rendered pixels where the mask is true, and exactly the original's everywhere else.

    Args:
        original, rendered: (H, W, 3) uint8.
        mask: (H, W) bool.
        share: (H, W) uint8, in the mask's place: each pixel's share of the rendered one, exact where the share is 0 or 255.
    """
    if share is None:
        return np.where(mask[..., None], rendered, original)
    part = share[..., None].astype(np.uint32)
    return ((rendered * part + original * (255 - part) + 127) // 255).astype(np.uint8)
