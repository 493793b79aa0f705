"""Reads the page headers of a Parquet file's column chunks without decompressing a page.

Arrow believes the sizes in a page header and allocates them. So a reader of strangers' files looks at the headers first. Headers
are structures of Thrift's compact protocol: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

DATA, INDEX, DICTIONARY, DATA_V2 = range(4)  # kinds of pages
MOST_FIELDS = 200  # of one header, in all its structures
DEEPEST = 8  # structures in structures

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_TYPE, _UNCOMPRESSED, _COMPRESSED = 1, 2, 3  # fields of a header
_HEADER_OF = {DATA: 5, DICTIONARY: 7, DATA_V2: 8}  # the field that holds what a kind of page says besides
_NUMBER = 1  # of values, in all of these
_ENCODING = {DATA: 2, DICTIONARY: 2, DATA_V2: 4}


@dataclass(frozen=True)
class Page:
    """Describes one page by its header.

    Attributes:
        kind: DATA, DICTIONARY or DATA_V2.
        values: Number of values, nulls included.
        encoding: The encoding's number in Parquet's format.
        size: Bytes of the page once it is decompressed.
        compressed: Bytes of the page in the file.
    """

    kind: int
    values: int
    encoding: int
    size: int
    compressed: int


def pages(content: memoryview, start: int, stop: int, values: int) -> Iterator[Page]:
    """Read the headers of one column chunk's pages, in their order.

    Args:
        content: The bytes of the whole file.
        start, stop: Where the chunk lies, in bytes.
        values: Number of values in the chunk; what follows the page that has the last of them is no page.

    Raises:
        ValueError: The bytes are no page headers, or the pages have another number of values.
    """
    at, seen = start, 0
    kind: Any
    size: Any
    compressed: Any
    number: Any
    encoding: Any
    while seen < values:
        if not start <= at < stop <= len(content):
            raise ValueError("a page lies outside of its column")
        reader = _Reader(content, at, stop)
        header = reader.struct()
        kind, size, compressed = (header.get(field) for field in (_TYPE, _UNCOMPRESSED, _COMPRESSED))
        said = header.get(_HEADER_OF.get(kind, 0)) if isinstance(kind, int) else None
        number, encoding = (said.get(_NUMBER), said.get(_ENCODING[kind])) if isinstance(said, dict) else (None, None)
        if not all(isinstance(value, int) and value >= 0 for value in (number, encoding, size, compressed)):
            raise ValueError("a page has no header that can be read")
        yield Page(kind, number, encoding, size, compressed)
        seen += number if kind != DICTIONARY else 0
        at = reader.at + compressed
    if seen != values or at > stop:
        raise ValueError(f"a column's pages hold {seen:,} values, not {values:,}")


class _Reader:
    """Reads structures of Thrift's compact protocol from one place on."""

    def __init__(self, content: memoryview, at: int, stop: int):
        self._content, self.at, self._stop, self._fields = content, at, stop, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a structure; return its values by the numbers of its fields."""
        if depth > DEEPEST:
            raise ValueError("a page's header is nested too deep")
        values: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else _unfolded(self._varint())
            values[number] = self._value(head & 15, depth)
        return values

    def _value(self, kind: int, depth: int) -> Any:
        self._fields += 1
        if self._fields > MOST_FIELDS:
            raise ValueError("a page's header has too many fields")
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return _unfolded(self._varint())
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == _BINARY:
            return self._skip(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            head = self._byte()
            number = head >> 4 if head >> 4 < 15 else self._varint()
            # Booleans in lists take a byte each, unlike those in structures.
            return [
                self._value(_BYTE if head & 15 in (_TRUE, _FALSE) else head & 15, depth) for _ in range(min(number, MOST_FIELDS))
            ]
        raise ValueError("a page's header has a field of an unknown kind")

    def _byte(self) -> int:
        if self.at >= self._stop:
            raise ValueError("a page's header is cut off")
        self.at += 1
        return self._content[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a page's header has a number that does not end")

    def _skip(self, size: int) -> None:
        if size > self._stop - self.at:
            raise ValueError("a page's header is cut off")
        self.at += size


def _unfolded(value: int) -> int:
    """Return the signed number that Thrift's zigzag form stands for."""
    return (value >> 1) ^ -(value & 1)
