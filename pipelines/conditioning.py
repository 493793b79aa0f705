"""Conditioning images as the models take them: any picture to RGB of the wanted size, masks, control maps made on the fly.

One policy for all of them. A picture is brought to 8-bit RGB: transparency lies on white, colour profiles are not applied. It is
then scaled, its aspect kept, until it covers the wanted size, and cropped around its centre; so a mask and a control image of the
same shape as their init image stay aligned with it.
"""

import cv2
import numpy as np
from PIL import Image, ImageCms

from configs.parameters import Preprocess

CANNY_THRESHOLDS = (100, 200)  # as in ControlNet's and diffusers' documentation
BLUR = 1 / 64  # the Gaussian's sigma, in short sides: 8 pixels at 512
TILE = 8  # how many times smaller a tile map is before it is scaled back up
MASK_THRESHOLD = 128  # levels; from here on a mask is white


def prepare(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Bring a picture to RGB and to the wanted size.

    Scaling is Lanczos with antialiasing; where nothing needs to be scaled the pixels stay what they are.

    Args:
        image: Of any mode that a file can have, turned already as its EXIF says.
        width, height: In pixels.

    Returns:
        (height, width, 3) uint8, sRGB.
    """
    return np.array(_cover(_rgb(image), width, height, Image.Resampling.LANCZOS))


def prepare_mask(image: Image.Image, width: int, height: int) -> np.ndarray:
    """Bring a mask to the wanted size: the same crop as `prepare`, but every pixel is that of the nearest.

    A mask is read by its luminance. Transparency lies on black: what is not there asks for nothing to be repainted.

    Returns:
        (height, width) bool, true where white: there the picture is repainted.
    """
    luminance = _rgb(image, ground="black").convert("L")
    return np.asarray(_cover(luminance, width, height, Image.Resampling.NEAREST)) >= MASK_THRESHOLD


def _rgb(image: Image.Image, ground: str = "white") -> Image.Image:
    """8-bit RGB of a picture of any mode, what is transparent in it laid on a plain ground."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_levels(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")
    if image.mode == "LAB":  # the one mode that Pillow does not convert without a profile
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)
    return image.convert("RGB")


def _levels(values: np.ndarray) -> np.ndarray:
    """Grey values beyond 8 bits as levels, uint8 of the same shape.

    Integers from 0 to 65535 are taken as 16 bits, floats from 0 to 1 as shares of white and up to 255 as levels; any other range
    is stretched, its least to black and its greatest to white. What is not finite is black.
    """
    finite = np.isfinite(values)
    grey = np.where(finite, values, 0).astype(np.float64)
    low, high = (float(grey[finite].min()), float(grey[finite].max())) if finite.any() else (0.0, 0.0)
    white = 65535.0 if values.dtype.kind in "iu" else 1.0 if high <= 1 else 255.0
    if low < 0 or high > white:
        grey, white = np.where(finite, grey - low, 0), (high - low) or 1.0
    return np.rint(grey * 255 / white).astype(np.uint8)


def _cover(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    """The largest centred part of a picture that has the wanted aspect, at the wanted size."""
    wide = image.width * height >= image.height * width  # wider than wanted: its sides go
    across, down = (image.height * width / height, image.height) if wide else (image.width, image.width * height / width)
    left, top = (image.width - across) / 2, (image.height - down) / 2
    if (across, down) == (width, height):  # nothing is scaled, so half a pixel must not be either
        left, top = left // 1, top // 1
    return image.resize((width, height), resample, box=(left, top, left + across, top + down))


def control_map(kind: Preprocess, image: np.ndarray) -> np.ndarray:
    """Make a control map of a prepared picture; the same pixels always give the same map.

    Args:
        kind: `none` takes the picture as the map; `canny` finds edges, 255 on 0, by the strongest of the three channels; `grey` is
            the luminance (Rec. 601); `blur` is Gaussian, of `BLUR` short sides; `tile` is scaled down `TILE` times by area
            and back up (bicubic); `invert` is the negative.
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
    """The rendered pixels where the mask is true, and exactly the original's everywhere else.

    Args:
        original, rendered: (H, W, 3) uint8.
        mask: (H, W) bool.
    """
    return np.where(mask[..., None], rendered, original)
