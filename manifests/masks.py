"""Reads masks as the tool that wrote them meant them: finds the pixels that are to be repainted; docs/masks.md is for users."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from promptmill.configs.mask_edits import SHARP, MaskEdit
from promptmill.manifests.mask_changes import changed
from promptmill.manifests.pixels import cover, levels, to_rgb

THRESHOLD = 128  # levels; from here on a mask is white, and an alpha opaque
NEARLY = 32  # levels; colours that differ by less count as one, and what is darker as black
FLAT_COLOURS = 24  # a palette or a hand paints with so many at most; a photo has more
MAX_CLASSES = 64  # colours of a palette; what uses more of them is a picture, not a segmentation


@dataclass(frozen=True)
class Reading:
    """Holds the meaning of a mask at its own size.

    Attributes:
        repaint: (H, W) bool, true where the picture is repainted.
        greatest: The greatest level of the mask's pixels, in the file's own units.
        unsure: Whether only the init image can tell a photo with a hole from colours painted on transparency.
        empty: Whether every pixel is transparent, so that the mask says nothing.
    """

    repaint: np.ndarray
    greatest: float
    unsure: bool = False
    empty: bool = False


def read_mask(image: Image.Image, init: Image.Image | None = None) -> Reading:
    """Read the pixels of a mask that ask for repainting.

    Args:
        image: The mask, of any mode.
        init: The picture that is to be repainted, of the mask's size; needed only where `Reading.unsure`.
    """
    if image.has_transparency_data and not image.mode.startswith(("I", "F")):
        pixels = np.asarray(image.convert("RGBA"))
        if int(pixels[..., 3].min()) < 255:
            return _by_alpha(pixels, init)
        return _by_levels(pixels[..., :3])
    if image.mode == "P":
        return _by_palette(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low >= 0 and high <= 255:  # 8 bits, or a bitmap, in a file of more bits
            return Reading(values > 0 if high <= 1 else values >= THRESHOLD, high)
        return Reading(levels(values) >= THRESHOLD, high)
    if image.mode == "L":
        return _by_levels(np.asarray(image)[..., None])
    if image.mode == "F":
        return _of_luminance(levels(np.asarray(image)))
    return _by_levels(np.asarray(to_rgb(image)))


def _by_levels(pixels: np.ndarray) -> Reading:
    """Read (H, W, channels) uint8 by luminance; where nothing is above 1 the pixels are a bitmap of 0 and 1."""
    if int(pixels.max()) <= 1:
        return Reading(pixels.max(-1) > 0, int(pixels.max()))
    return _of_luminance(pixels[..., 0] if pixels.shape[-1] == 1 else np.asarray(Image.fromarray(pixels).convert("L")))


def _of_luminance(luminance: np.ndarray) -> Reading:
    return Reading(luminance >= THRESHOLD, int(luminance.max()))


def _by_palette(image: Image.Image) -> Reading:
    """Read a palette of greys by luminance, and a palette of colours as a segmentation: all but its background is repainted."""
    places, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    used, first = np.unique(places, return_index=True)
    of_used = colours.reshape(-1, 3)[first].astype(int)
    if len(used) <= MAX_CLASSES and int(np.ptp(of_used, axis=1).max()) >= NEARLY:
        black = of_used.max(1) < NEARLY
        background = used[black] if black.any() else [0]
        return Reading(~np.isin(places, background), int(np.asarray(image.convert("L")).max()))
    read = _by_levels(colours)
    if not read.repaint.any() and used.max() == 1:  # the tool wrote a bitmap as places in a palette, all of it dark
        return Reading(places == 1, read.greatest)
    return read


def _by_alpha(pixels: np.ndarray, init: Image.Image | None) -> Reading:
    """Read a mask that is transparent in part, (H, W, 4) uint8.

    A photo, or plain black, with a hole asks for the hole; a colour on transparency asks for what is painted; black and white on
    transparency ask for the white.
    """
    alpha = pixels[..., 3]
    greatest = int(alpha.max())
    if greatest == 0:
        return Reading(np.zeros(alpha.shape, bool), 0, empty=True)
    opaque = alpha >= min(THRESHOLD, greatest)
    visible = pixels[..., :3][opaque].astype(int)
    on_black = Image.alpha_composite(Image.new("RGBA", alpha.shape[::-1], "black"), Image.fromarray(pixels))
    white, hole, painted = np.asarray(on_black.convert("L")), alpha < THRESHOLD, alpha >= THRESHOLD
    if int(np.ptp(visible, axis=0).max()) < NEARLY:
        if int(visible.max()) < NEARLY:
            return Reading(hole, int(white.max()))
        return _of_luminance(white) if visible.mean() >= THRESHOLD else Reading(painted, greatest)
    if _is_black_and_white(visible):
        return _of_luminance(white)
    if len(np.unique(visible // 16 @ np.array([256, 16, 1]))) > FLAT_COLOURS:
        return Reading(hole, int(white.max()))
    if init is None or init.size != alpha.shape[::-1]:
        return Reading(hole, int(white.max()), unsure=True)
    shown = np.asarray(to_rgb(init))[opaque].astype(int)
    return Reading(hole if np.abs(shown - visible).mean() < NEARLY else painted, greatest)


def _is_black_and_white(colours: np.ndarray) -> bool:
    black, white = (colours.max(1) < NEARLY).mean(), (colours.min(1) > 255 - NEARLY).mean()
    return bool(black >= 0.01 and white >= 0.01 and black + white >= 0.95)


def prepare_mask(
    image: Image.Image, width: int, height: int, init: Image.Image | None = None, edit: MaskEdit = SHARP
) -> np.ndarray:
    """Bring a mask to the wanted size, where it is changed: the crop is that of its picture, the resampling is nearest neighbour.

    Args:
        image, init: As for `read_mask`.
        width, height: In pixels.
        edit: How the row changes the mask.

    Returns:
        (height, width) bool, true where the picture is repainted.
    """
    return changed(_at(read_mask(image, init).repaint, width, height), edit)


def _at(repaint: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(cover(Image.fromarray(repaint).convert("L"), width, height, Image.Resampling.NEAREST)) >= THRESHOLD


@dataclass(frozen=True)
class Effect:
    """Holds the effect of a mask on a picture of one size.

    Attributes:
        problem: Why the mask repaints nothing, or "".
        everything: Whether the mask repaints all of the picture.
        unsure: As `Reading` has it.
    """

    problem: str = ""
    everything: bool = False
    unsure: bool = False

    @property
    def selects(self) -> str:
        """Return the problem of a mask that chooses where a reference acts, or ""."""
        return self.problem.replace("repaint", "select")


def effect_of(image: Image.Image, width: int, height: int, init: Image.Image | None = None, edit: MaskEdit = SHARP) -> Effect:
    """Return whether a mask repaints nothing, some or all of a picture; arguments as for `prepare_mask`."""
    read = read_mask(image, init)
    before = _at(read.repaint, width, height)
    there = changed(before, edit)
    if there.any():
        return Effect(everything=bool(there.all()), unsure=read.unsure)
    if edit.invert and before.all():
        why = "it is white everywhere, and inverted"
    elif before.any() or edit.invert:
        why = f"nothing is left of it at {width} x {height} with grow={edit.grow}"
    elif read.empty:
        why = "every pixel is transparent"
    elif read.repaint.any():
        why = f"all that it would repaint is cropped away at {width} x {height}"
    else:
        why = f"no pixel is {THRESHOLD} or more; its greatest is {read.greatest:g}"
    return Effect(f"repaints nothing ({why})", unsure=read.unsure)
