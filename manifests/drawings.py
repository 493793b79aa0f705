"""Reads drawings as SVG, which a row may name or hold itself, and draws them: no file, host or font beside the drawing has a part.

A drawing of a stranger may hold what harms: entities and references that multiply, names of files and hosts, scripts. Such a
drawing is refused before the renderer sees it. Text, which would look different on another machine, is refused too.
"""

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from PIL import Image

from promptmill.configs.errors import shown
from promptmill.configs.parameters import DRAWING
from promptmill.manifests.bounded_xml import XmlError, read_xml
from promptmill.manifests.drawing_process import UndrawnError, render

MOST_BYTES = 1_000_000
MOST_ELEMENTS = 20_000  # with all that references repeat
# A viewBox of fewer pixels than any image has, as 0 0 1 1, is of other units. Its drawing has so many on the shorter side.
FEWEST, LARGER = 8, 512
MARK = b"\xef\xbb\xbf"  # of byte order
REFUSED = {
    "script": "scripts are not run",
    "foreignObject": "what is not SVG is not drawn",
    "image": "a picture in a drawing is not read; give the picture itself",
    "text": "text needs fonts, which differ between machines; convert it to paths",
    "filter": "filters are not drawn",
    "animate": "what moves is not drawn",
    "set": "what moves is not drawn",
}
_REFERENCE = re.compile(r"url\(\s*['\"]?\s*([^'\")\s]*)")
_FILTER = re.compile(r"(?<![\w-])filter\s*:(?!\s*none\b)", re.IGNORECASE)
_LENGTH = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?) ?(?:px)?")


class DrawingError(ValueError):
    """Reports a drawing that is not drawn, and why, in one line."""


def is_inline(path: str) -> bool:
    """Return whether a row has a drawing itself in the place of a path."""
    return path.lstrip().startswith(DRAWING)


def is_drawing(content: bytes) -> bool:
    """Return whether a file's bytes begin as an SVG drawing does."""
    return content[:200].removeprefix(MARK).lstrip().startswith(tuple(one.encode() for one in DRAWING))


def draw(content: bytes, max_pixels: int, size: tuple[int, int] | None = None) -> Image.Image:
    """Draw an SVG drawing, on transparency.

    Args:
        content: The drawing, in UTF-8.
        max_pixels: The greatest number of pixels of the result.
        size: Width and height that the result has to cover, in pixels, so that nothing has to be scaled. A drawing so narrow that
            it would need more pixels than allowed has those allowed. None is the size that the drawing says.

    Returns:
        An RGBA picture of the drawing's aspect.

    Raises:
        DrawingError: The drawing is broken, holds what is refused, or says a size that is larger than allowed.
    """
    root, (width, height) = checked(content)
    if width * height > max_pixels or max(width, height) > max_pixels:
        raise DrawingError(f"{width:,.0f} x {height:,.0f} pixels are more than the {max_pixels:,} allowed")
    if size is not None:
        most = min(math.sqrt(max_pixels / (width * height)), max_pixels / max(width, height))
        scale = min(max(size[0] / width, size[1] / height), most)
        width, height = width * scale, height * scale
    try:
        drawn = render(*_sized(root, width, height))
    except UndrawnError as error:
        raise DrawingError(shown(" ".join(str(error).split()), 200)) from None
    image = Image.open(io.BytesIO(drawn), formats=["PNG"])
    image.load()
    return image


def checked(content: bytes) -> tuple[ET.Element, tuple[float, float]]:
    """Return the root of a drawing, and the width and height that the drawing says, in pixels.

    Raises:
        DrawingError: The drawing is broken, or holds what is refused.
    """
    if len(content) > MOST_BYTES:
        raise DrawingError(f"a drawing of more than {MOST_BYTES:,} bytes")
    try:
        # As text, since a declared encoding may let the renderer read another drawing than this parser does.
        root = read_xml(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DrawingError("a drawing that is not UTF-8") from None
    except XmlError as error:
        raise DrawingError(str(error)) from None
    except ET.ParseError as error:
        raise DrawingError(f"is no SVG: {shown(str(error), 200)}") from None
    if _plain(root.tag) != "svg":
        raise DrawingError(f"is no SVG: begins with {shown(_plain(root.tag))}")
    for element in root.iter():
        _check_element(element)
    _check_repeated(root)
    return root, _size_of(root)


def _sized(root: ET.Element, width: float, height: float) -> tuple[str, int, int]:
    """Return a drawing that says the whole pixels that it is drawn at, and these: the renderer rounds what a drawing says.

    Of a width of 1.5 the renderer would make 2, and draw in that aspect. The drawing is written anew, as the check has read it.
    """
    sized = ET.Element(root.tag, root.attrib)
    sized.extend(root)
    sized.text = root.text
    whole = max(1, round(width)), max(1, round(height))
    box = root.attrib.get("viewBox")
    if box is None:
        box = sized.attrib["viewBox"] = "0 0 {!r} {!r}".format(*_size_of(root))
    try:
        *_, across, down = map(float, re.split(r"[\s,]+", box.strip()))
        is_alike = abs(across * height - down * width) <= 0.001 * down * width
    except ValueError:
        is_alike = False  # which the renderer judges
    if is_alike:
        sized.attrib["preserveAspectRatio"] = "none"  # to the last pixel of each side
    sized.attrib |= {"width": str(whole[0]), "height": str(whole[1])}
    return ET.tostring(sized, encoding="unicode"), *whole


def _check_element(element: ET.Element) -> None:
    name = _plain(element.tag)
    for refused, why in REFUSED.items():
        if name == refused or (refused == "animate" and name.startswith(refused)):
            raise DrawingError(f"has an element {name}: {why}")
    style = "".join(element.itertext()) if name == "style" else element.attrib.get("style", "")
    if _FILTER.search(style) or element.attrib.get("filter", "none").strip() != "none":
        raise DrawingError(f"has a filter: {REFUSED['filter']}")
    if name == "style" and (found := re.search(r"@import|url\(", style, re.IGNORECASE)):
        raise DrawingError(f"has {found[0]} in its style: nothing beside the drawing is read")
    for key in element.attrib:
        if _plain(key).lower().startswith("on"):
            raise DrawingError(f"has an attribute {shown(_plain(key))}: scripts are not run")
    for target in _targets(element):
        if not target.startswith("#"):
            raise DrawingError(f"names {shown(target)}: nothing beside the drawing is read")


def _targets(element: ET.Element) -> Iterator[str]:
    """Yield the places that an element's attributes refer to."""
    for key, value in element.attrib.items():
        if _plain(key) == "href":
            yield value.strip()
        else:
            yield from _REFERENCE.findall(value)


def _check_repeated(root: ET.Element) -> None:
    """Check that a drawing has few elements, counting each as often as references repeat it, and that none refers to itself."""
    by_id = {element.attrib["id"]: element for element in root.iter() if "id" in element.attrib}
    counts: dict[ET.Element, int | None] = {}  # None while an element is being counted
    waiting = [(root, False)]
    while waiting:
        element, is_counted = waiting.pop()
        parts = [*element, *(by_id[target[1:]] for target in _targets(element) if target[1:] in by_id)]
        if is_counted:
            total = 1 + sum(counts[part] or 0 for part in parts)
            if total > MOST_ELEMENTS:
                raise DrawingError(f"has more than {MOST_ELEMENTS:,} elements, with those that references repeat")
            counts[element] = total
        elif element not in counts:
            counts[element] = None
            waiting.append((element, True))
            for part in parts:
                if part not in counts:
                    waiting.append((part, False))
                elif counts[part] is None:
                    raise DrawingError(f"has an element {_plain(element.tag)} that refers to itself")


def _size_of(root: ET.Element) -> tuple[float, float]:
    said = [_LENGTH.fullmatch(root.attrib.get(name, "").strip()) for name in ("width", "height")]
    box = re.split(r"[\s,]+", root.attrib.get("viewBox", "").strip())
    times = 1.0
    try:
        if said[0] and said[1]:
            size = float(said[0][1]), float(said[1][1])
        else:
            size = float(box[2]), float(box[3])
            times = LARGER / min(size) if 0 < min(size) < FEWEST else 1.0
    except (ValueError, IndexError):
        raise DrawingError("says no size; give the svg element a width and a height in pixels, or a viewBox") from None
    if not all(0 < side < 1e6 for side in size):
        raise DrawingError(f"has a size of {size[0]:g} x {size[1]:g}")
    return size[0] * times, size[1] * times


def _plain(name: str) -> str:
    return name.rpartition("}")[2]
