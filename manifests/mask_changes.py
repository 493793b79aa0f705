"""Makes masks anew as rows ask for it, and widened pictures with their masks, at the size of the rendered image."""

import numpy as np
from PIL import Image, ImageFilter

from promptmill.configs.mask_edits import MaskEdit, Outpaint


def changed(repaint: np.ndarray, edit: MaskEdit) -> np.ndarray:
    """Return a mask inverted and then grown, (H, W) bool in and out; blurring is for `softened`."""
    repaint = ~repaint if edit.invert else repaint
    return _grown(repaint, edit.grow) if edit.grow >= 0 else ~_grown(~repaint, -edit.grow)


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return where a pixel of the mask is at most so many pixels away, by Euclid's distance of the pixels' centres."""
    if not pixels or not mask.any():
        return mask
    import cv2  # takes 0.1 s, for which rows without such a mask do not wait

    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # In whole numbers: a float's root of a square may be a little off.
    return np.asarray(np.rint(distance.astype(np.float64) ** 2) <= pixels * pixels)


def part_around(repaint: np.ndarray, padding: int) -> tuple[int, int, int, int]:
    """Return the smallest part of a picture that holds a mask and its padding and has the picture's aspect, within a pixel.

    Args:
        repaint: (H, W) bool, somewhere true.
        padding: In pixels; there is less where the picture ends.

    Returns:
        Left, top, right and bottom in pixels, within the picture.
    """
    height, width = repaint.shape
    (top, bottom), (left, right) = (
        (max(0, int(places[0]) - padding), min(side, int(places[-1]) + 1 + padding))
        for side, places in ((height, np.flatnonzero(repaint.any(1))), (width, np.flatnonzero(repaint.any(0))))
    )
    across = max(right - left, -(-(bottom - top) * width // height))
    down = max(bottom - top, -(-(right - left) * height // width))
    left = min(max(0, (left + right - across) // 2), width - across)
    top = min(max(0, (top + bottom - down) // 2), height - down)
    return left, top, left + across, top + down


def softened(repaint: np.ndarray, edit: MaskEdit, sides: Outpaint | None = None) -> np.ndarray | None:
    """Return each pixel's share of the rendered image, (H, W) uint8 with 255 for all of it; None where edges are sharp.

    The Gaussian is that of Pillow, whose reach is bounded: pixels further than 3 × blur + 3 pixels from an edge have 0 or 255.

    Args:
        repaint: (H, W) bool, the mask that the model gets.
        edit: How far the edge is blurred.
        sides: The sides by which the init image is widened; there is nothing but the rendered image.
    """
    if not edit.blur:
        return None
    share = np.asarray(Image.fromarray(repaint).convert("L").filter(ImageFilter.GaussianBlur(edit.blur)))
    if sides is None:
        return share
    height, width = repaint.shape
    return np.maximum(share, np.where(widened_mask(sides, width, height, overlap=0), 255, 0).astype(np.uint8))


def widened_mask(sides: Outpaint, width: int, height: int, overlap: int | None = None) -> np.ndarray:
    """Return the mask of a widened picture: its new sides, and along each of them so many pixels of the init image.

    Args:
        sides: The sides.
        width, height: Of the rendered image, in pixels.
        overlap: In pixels; None: that of `sides`.

    Returns:
        (height, width) bool, true where the picture is repainted.
    """
    more = sides.overlap if overlap is None else overlap
    repaint = np.ones((height, width), bool)
    left, top, right, bottom = (side + more if side else 0 for side in (sides.left, sides.top, sides.right, sides.bottom))
    repaint[top : height - bottom, left : width - right] = False
    return repaint


def widened(picture: np.ndarray, sides: Outpaint) -> np.ndarray:
    """Return a picture with its outermost pixels repeated over its new sides, (H, W, 3) uint8 in and out."""
    return np.pad(picture, ((sides.top, sides.bottom), (sides.left, sides.right), (0, 0)), "edge")
