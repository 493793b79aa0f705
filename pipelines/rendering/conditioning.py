"""Prepares conditioning images for the models: pictures in RGB at the wanted size, masks, and control maps.

One policy holds for all of them. A picture is brought to 8-bit RGB: transparency lies on white, colour profiles are not applied.
The picture is then scaled, its aspect kept, until it covers the wanted size, and cropped around its centre. So a mask and a control
image of the same shape as their init image stay aligned with it. promptmill.manifests.masks says how a mask is read. Further
pictures keep their aspect, since nothing has to be aligned with them.
"""

import math

import cv2
import numpy as np
from PIL import Image

from promptmill.configs.parameters import Preprocess
from promptmill.manifests.pixels import cover, to_rgb

CANNY_THRESHOLDS = (100, 200)  # as in ControlNet's and diffusers' documentation
BLUR = 1 / 64  # the Gaussian's sigma, in short sides: 8 pixels at 512
LEAST_SIDE = 64  # of further pictures, in pixels, as FLUX.2's pipeline wants it
TILE = 8  # how many times smaller a tile map is before it is scaled back up


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


def control_map(kind: Preprocess, image: np.ndarray) -> np.ndarray:
    """Make a control map of a prepared picture; the same pixels always give the same map.

    Args:
        kind: `none` takes the picture as the map; `canny` finds edges, 255 on 0, by the strongest of the three channels; `grey` is
            the luminance (Rec. 601); `blur` is Gaussian, of `BLUR` short sides; `tile` is scaled down `TILE` times by area and back
            up (bicubic); `invert` is the negative.
        image: (H, W, 3) uint8.

    Returns:
        (H, W, 3) uint8, never the array that was given.
    """
    height, width = image.shape[:2]
    match kind:
        case "none":
            return image.copy()
        case "canny":
            return _three(cv2.Canny(np.ascontiguousarray(image), *CANNY_THRESHOLDS))
        case "grey":
            return _three(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        case "blur":
            return cv2.GaussianBlur(image, (0, 0), BLUR * min(height, width))
        case "tile":
            small = cv2.resize(image, (max(1, width // TILE), max(1, height // TILE)), interpolation=cv2.INTER_AREA)
            return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        case "invert":
            return 255 - image


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def composite(original: np.ndarray, rendered: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the rendered pixels where the mask is true, and exactly the original's everywhere else.

    Args:
        original, rendered: (H, W, 3) uint8.
        mask: (H, W) bool.
    """
    return np.where(mask[..., None], rendered, original)
