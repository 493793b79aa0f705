"""Reads how a row changes its mask (`invert, grow=16, blur=4`) and how it widens its picture (`left=64, right=64`).

Both are written as text or as an object, and have one spelling: values in their order, without those at their default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from promptmill.configs.errors import nearest, quoted

MAX_GROW = 1024  # pixels
MAX_BLUR = 256  # pixels
MAX_WIDENED = 8192  # pixels, of one side
OVERLAP = 8  # pixels; one place of the latents of most models
PADDING = 32  # pixels, as other tools have it

_RANGES = {"grow": (-MAX_GROW, MAX_GROW), "blur": (0, MAX_BLUR), "padding": (0, MAX_GROW), "overlap": (0, MAX_GROW)}


@dataclass(frozen=True)
class MaskEdit:
    """Holds the changes of a mask, at the size of the rendered image and in this order.

    Attributes:
        invert: Whether all else is repainted.
        grow: By how many pixels the repainted part grows in every direction; below 0 it shrinks.
        blur: The Gaussian's sigma, in pixels, of the edge where the repainted part goes over into the init image; 0: it is sharp.
        only_masked: Whether the model renders no more than the part of the picture around the mask, scaled up to the image's size.
        padding: How many pixels of that part lie around the mask at least, where the picture has them.
    """

    invert: bool = False
    grow: int = 0
    blur: int = 0
    only_masked: bool = False
    padding: int = PADDING


@dataclass(frozen=True)
class Outpaint:
    """Holds how many pixels of the rendered image lie beside its init image on each side.

    Attributes:
        overlap: How many pixels of the init image are repainted along each widened side.
    """

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    overlap: int = OVERLAP

    def within(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and the height that an image of this size leaves for the init image; they may be below 1."""
        return width - self.left - self.right, height - self.top - self.bottom


SHARP = MaskEdit()


def parse_mask_edit(value: Any) -> MaskEdit:
    """Parse a text or an object.

    Raises:
        ValueError: There is no such change, or its value is out of range; the message is one line.
    """
    values = _values(value, MaskEdit)
    if "padding" in values and not values.get("only_masked"):
        raise ValueError("padding goes with only_masked; without it the whole picture is rendered")
    return MaskEdit(**values)


def parse_outpaint(value: Any) -> Outpaint:
    """Parse a text or an object.

    Raises:
        ValueError: There is no such side, its value is out of range, or no side is widened; the message is one line.
    """
    parsed = Outpaint(**_values(value, Outpaint))
    if not any((parsed.left, parsed.top, parsed.right, parsed.bottom)):
        raise ValueError("widens no side, so that nothing is repainted; give left, top, right or bottom, in pixels")
    return parsed


def mask_edit_text(value: Any) -> str | None:
    """Return the one spelling of a change of a mask; None for a change that changes nothing. Raises ValueError as the parser."""
    return _text(parse_mask_edit(value)) or None


def outpaint_text(value: Any) -> str | None:
    """Return the one spelling of sides; None for an object without any. Raises ValueError as `parse_outpaint`."""
    if value is None or (isinstance(value, Mapping) and all(one is None for one in value.values())):
        return None  # a struct of Parquet has all its keys in every row
    return _text(parse_outpaint(value))


def _text(parsed: MaskEdit | Outpaint) -> str:
    said = [(one.name, getattr(parsed, one.name)) for one in fields(parsed) if getattr(parsed, one.name) != one.default]
    return ", ".join(name if value is True else f"{name}={value}" for name, value in said)


def _values(value: Any, kind: type[MaskEdit] | type[Outpaint]) -> dict[str, Any]:
    known = {one.name: isinstance(one.default, bool) for one in fields(kind)}
    example = "invert, grow=16, blur=4" if kind is MaskEdit else "left=64, right=64"
    values: dict[str, Any] = {}
    for name, said in _said(value, example):
        if name not in known:
            raise ValueError(f"{quoted(name)} is not known{nearest(name, known)}; there are {', '.join(known)}")
        if name in values:
            raise ValueError(f"{name} is given twice")
        values[name] = _flag(name, said) if known[name] else _number(name, said)
    return values


def _said(value: Any, example: str) -> list[tuple[str, Any]]:
    """Return names and values as they are written; a name without a value has True."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [(str(name), one) for name, one in value.items() if one is not None]
    if not isinstance(value, str):
        raise ValueError(f"input should be a text like {quoted(example)}, or an object")
    said: list[tuple[str, Any]] = []
    for part in value.split(",") if value.strip() else ():
        name, equals, one = (piece.strip() for piece in part.partition("="))
        said.append((name, one if equals else True))
    return said


def _flag(name: str, said: Any) -> bool:
    if not isinstance(said, bool):
        raise ValueError(f"{name} has no value; write {name}, or leave it out")
    return said


def _number(name: str, said: Any) -> int:
    least, most = _RANGES.get(name, (0, MAX_WIDENED))
    try:
        number = None if isinstance(said, bool) else int(said)
        if number is None or (not isinstance(said, str) and number != said):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        number = None
    if number is None or not least <= number <= most:
        found = "and has none here" if said is True else f"not {quoted(str(said))}"
        raise ValueError(f"{name} is a whole number of pixels from {least:,} to {most:,}, {found}")
    return number
