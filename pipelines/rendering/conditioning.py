"""Prepares conditioning images for the models: pictures in RGB at the wanted size, and masks.

One policy holds for all of them. A picture is brought to 8-bit RGB: transparency lies on white, colour profiles are not applied.
The picture is then scaled, its aspect kept, until it covers the wanted size, and cropped around its centre. So a mask and a control
image of the same shape as their init image stay aligned with it. promptmill.manifests.masks says how a mask is read.
"""

import numpy as np
from PIL import Image

from promptmill.manifests.pixels import cover, to_rgb


def prepare(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Bring a picture to RGB and to the wanted size.

    Scaling is Lanczos with antialiasing; where nothing needs to be scaled the pixels stay the same.

    Args:
        image: A picture of any mode that a file can have, turned already as its EXIF says.
        width, height: In pixels.

    Returns:
        (height, width, 3) uint8, sRGB.
    """
    return np.array(cover(to_rgb(image), width, height, Image.Resampling.LANCZOS))


def composite(original: np.ndarray, rendered: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the rendered pixels where the mask is true, and exactly the original's everywhere else.

    Args:
        original, rendered: (H, W, 3) uint8.
        mask: (H, W) bool.
    """
    return np.where(mask[..., None], rendered, original)
