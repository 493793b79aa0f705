"""Reads XML of strangers: of bounded depth and size, and without declarations, by which entities multiply."""

from xml.etree import ElementTree as ET

DEEPEST = 64  # elements in one another
MOST_ELEMENTS = 200_000  # some 100 bytes of memory each, and more


class XmlError(ValueError):
    """Reports XML that goes beyond a bound or declares what it may not, in a line that begins with a verb."""


class _Tree(ET.TreeBuilder):
    def __init__(self) -> None:
        super().__init__()
        self._depth = self._elements = 0

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise XmlError("has a DOCTYPE, which may declare entities; take it out")

    def start(self, tag: str, attrs: dict[str, str]) -> ET.Element:
        self._depth += 1
        self._elements += 1
        if self._depth > DEEPEST:
            raise XmlError(f"has more than {DEEPEST} elements in one another")
        if self._elements > MOST_ELEMENTS:
            raise XmlError(f"has more than {MOST_ELEMENTS:,} elements")
        return super().start(tag, attrs)

    def end(self, tag: str) -> ET.Element:
        self._depth -= 1
        return super().end(tag)


def read_xml(content: str | bytes) -> ET.Element:
    """Return the root element of XML.

    Raises:
        xml.etree.ElementTree.ParseError: The XML is broken.
        XmlError: The XML has a DOCTYPE, or too many elements, in one another or in all.
    """
    return ET.fromstring(content, ET.XMLParser(target=_Tree()))
