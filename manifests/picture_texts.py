"""Reads the texts in a picture's metadata without its pixels: PNG text, EXIF and XMP of PNG, JPEG and WebP.

A picture is a stranger's. Chunks that hold no text are passed over unread; what is read is bounded, and what it decompresses to.
"""

import io
import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from promptmill.configs.image_text import EXIF_IFD, REQUEST_TEXT, USER_COMMENT, XMP_NAMESPACE
from promptmill.manifests.bounded_xml import read_xml

MOST_TEXT = 8 * 2**20  # bytes of all texts of a picture; workflows of ComfyUI take some hundred KiB
MOST_CHUNKS = 100_000  # of a file, read or passed over
MOST_ENTRIES = 1000  # of a directory of EXIF
ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp")

# EXIF's tags, and the keys that their texts get here.
_TAGS = {0x010E: "Description", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software", USER_COMMENT: "UserComment"}
_TYPE_SIZES = {1: 1, 2: 1, 7: 1}  # TIFF's types that hold texts, with the bytes of a value
_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
_OWN = f"{{{XMP_NAMESPACE}}}request"


class UnreadError(ValueError):
    """Reports a picture whose metadata cannot be read, and why, in words behind the picture's name."""


@dataclass(frozen=True)
class Texts:
    """Holds the texts of a picture's metadata by their keywords, and the picture's width and height in pixels."""

    texts: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None


def read_texts(file: IO[bytes]) -> Texts:
    """Return the texts in a picture, whose file is open at its beginning and can seek.

    Raises:
        UnreadError: The file is no PNG, JPEG or WebP, is cut off, or has larger metadata than any tool writes.
        OSError: The file cannot be read.
    """
    head = file.read(12)
    try:
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            file.seek(8)
            return _Gathered().of_png(file)
        if head.startswith(b"\xff\xd8\xff"):
            file.seek(2)
            return _Gathered().of_jpeg(file)
        if head[:4] == b"RIFF" and head[8:] == b"WEBP":
            return _Gathered().of_webp(file)
    except (struct.error, zlib.error, IndexError):
        raise UnreadError("is damaged or cut off") from None
    raise UnreadError("is no PNG, JPEG or WebP by its content")


class _Gathered:
    """Gathers the texts of one picture; the first text of a keyword counts."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._room = MOST_TEXT

    def _read(self, file: IO[bytes], size: int) -> bytes:
        content = file.read(self._taken(size))
        if len(content) < size:
            raise UnreadError("is damaged or cut off")
        return content

    def _taken(self, size: int) -> int:
        self._room -= size
        if self._room < 0:
            raise UnreadError(f"has more than {MOST_TEXT // 2**20} MiB of metadata")
        return size

    def _unpacked(self, content: bytes) -> bytes:
        """Decompress a text of PNG, never beyond the room that is left."""
        unpacking = zlib.decompressobj()
        plain = unpacking.decompress(content, self._room + 1)
        self._taken(len(plain))
        return plain

    def _keep(self, keyword: str, text: str) -> None:
        # Some writers pad texts with NUL characters.
        text = text.replace("\0", "").strip("\ufeff")
        if keyword and text.strip():
            self._texts.setdefault(keyword, text)

    def of_png(self, file: IO[bytes]) -> Texts:
        size = None
        for _ in range(MOST_CHUNKS):
            length, kind = struct.unpack(">I4s", file.read(8))
            if kind == b"IEND":
                return Texts(self._texts, size)
            if kind == b"IHDR" and length == 13:
                size = struct.unpack(">II", file.read(8))
                file.seek(length - 8 + 4, io.SEEK_CUR)
            elif kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
                content = self._read(file, length)
                file.seek(4, io.SEEK_CUR)
                self._png_text(kind, content)
            else:
                file.seek(length + 4, io.SEEK_CUR)
        raise UnreadError(f"has more than {MOST_CHUNKS:,} chunks")

    def _png_text(self, kind: bytes, content: bytes) -> None:
        if kind == b"eXIf":
            self._exif(content)
            return
        word, _, rest = content.partition(b"\0")
        keyword = word[:79].decode("latin-1")
        if kind == b"tEXt":
            # PNG says Latin-1; several tools write UTF-8.
            self._keep(keyword, _utf8_or_latin1(rest))
        elif kind == b"zTXt":
            self._keep(keyword, _utf8_or_latin1(self._unpacked(rest[1:])))
        else:
            packed, text = rest[:1], rest[2:].split(b"\0", 2)[2]
            plain = self._unpacked(text) if packed == b"\x01" else text
            if keyword == "XML:com.adobe.xmp":
                self._xmp(plain)
            else:
                self._keep(keyword, plain.decode("utf-8", "replace"))

    def of_jpeg(self, file: IO[bytes]) -> Texts:
        size = None
        for _ in range(MOST_CHUNKS):
            marker, kind = struct.unpack(">BB", file.read(2))
            while kind == 0xFF:  # padding
                kind = file.read(1)[0]
            if marker != 0xFF or kind in (0xD9, 0xDA):  # the end, or the beginning of the pixels
                return Texts(self._texts, size)
            if kind == 0x01 or 0xD0 <= kind <= 0xD7:
                continue
            length = struct.unpack(">H", file.read(2))[0] - 2
            if length < 0:
                raise UnreadError("is damaged or cut off")
            if kind in (0xE1, 0xFE):
                content = self._read(file, length)
                if kind == 0xFE:
                    self._keep("Comment", _utf8_or_latin1(content))
                elif content.startswith(b"Exif\0\0"):
                    self._exif(content[6:])
                elif content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                    self._xmp(content.partition(b"\0")[2])
            elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and length >= 5:
                _, height, width = struct.unpack(">BHH", file.read(5))
                size = width, height
                file.seek(length - 5, io.SEEK_CUR)
            else:
                file.seek(length, io.SEEK_CUR)
        raise UnreadError(f"has more than {MOST_CHUNKS:,} segments")

    def of_webp(self, file: IO[bytes]) -> Texts:
        size = None
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8:
                return Texts(self._texts, size)
            kind, length = struct.unpack("<4sI", head)
            if kind in (b"EXIF", b"XMP "):
                content = self._read(file, length)
                file.seek(length % 2, io.SEEK_CUR)
                if kind == b"XMP ":
                    self._xmp(content)
                else:
                    self._exif(content.removeprefix(b"Exif\0\0"))
                continue
            start = file.read(min(length, 10))
            if size is None:
                size = _webp_size(kind, start)
            file.seek(length - len(start) + length % 2, io.SEEK_CUR)
        raise UnreadError(f"has more than {MOST_CHUNKS:,} chunks")

    def _exif(self, block: bytes) -> None:
        """Take the texts of an EXIF block; a block that is broken is passed over, since the pixels do not need it."""
        try:
            order = {b"II": "<", b"MM": ">"}.get(block[:2])
            if order is None:
                return
            (first,) = struct.unpack_from(f"{order}I", block, 4)
            directories = [first]
            for directory in directories:
                for tag, text in _entries(block, directory, order):
                    if tag == EXIF_IFD and len(directories) == 1:
                        directories.append(int(text))
                    elif tag in _TAGS and isinstance(text, bytes):
                        self._keep_tag(_TAGS[tag], text, order)
        except struct.error:
            return

    def _keep_tag(self, name: str, content: bytes, order: str) -> None:
        self._taken(len(content))
        if name == "UserComment":
            self._keep(name, _comment(content, order))
            return
        text = _utf8_or_latin1(content)
        # ComfyUI's WebP has what its PNG has under these tags, as prompt:{…} and workflow:{…}.
        keyword, colon, rest = text.partition(":")
        if name in ("Make", "Model") and colon and keyword.lower() in ("prompt", "workflow"):
            self._keep(keyword.lower(), rest)
        else:
            self._keep(name, text)

    def _xmp(self, packet: bytes) -> None:
        """Take a description and promptmill's own text out of an XMP packet; one that is no XML is passed over."""
        try:
            root = read_xml(packet.rstrip(b"\0"))
        except (ET.ParseError, ValueError):  # XmlError is one
            return
        for element in root.iter():
            if (own := element.get(_OWN)) is not None:
                self._keep(REQUEST_TEXT, own)
            if (said := element.get(_DESCRIPTION)) is not None:
                self._keep("Description", said)
            if element.tag == _DESCRIPTION:
                self._keep("Description", "".join(element.itertext()).strip())


def _entries(block: bytes, at: int, order: str) -> Iterator[tuple[int, bytes | int]]:
    """Yield the texts of a directory of EXIF, and where the directory of EXIF's own tags begins, each with its tag."""
    (count,) = struct.unpack_from(f"{order}H", block, at)
    for number in range(min(count, MOST_ENTRIES)):
        tag, kind, values, value = struct.unpack_from(f"{order}HHII", block, at + 2 + 12 * number)
        if tag == EXIF_IFD:
            yield tag, value
        elif kind in _TYPE_SIZES:
            place = value if values > 4 else at + 2 + 12 * number + 8
            yield tag, block[place : place + values]


def _comment(content: bytes, order: str) -> str:
    """Return EXIF's user comment, whose first eight bytes name the encoding; UTF-16 is of either byte order, whatever EXIF says."""
    code, text = content[:8], content[8:]
    if code == b"UNICODE\0":
        if text[:2] in (b"\xfe\xff", b"\xff\xfe"):
            return text.decode("utf-16", "replace")
        high, low = text[::2].count(0), text[1::2].count(0)
        big = high > low if high != low else order == ">"
        return text.decode("utf-16-be" if big else "utf-16-le", "replace")
    return _utf8_or_latin1(text if code in (b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * 8) else content)


def _utf8_or_latin1(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _webp_size(kind: bytes, start: bytes) -> tuple[int, int] | None:
    if kind == b"VP8X" and len(start) == 10:
        return int.from_bytes(start[4:7], "little") + 1, int.from_bytes(start[7:10], "little") + 1
    if kind == b"VP8L" and len(start) >= 5:
        bits = int.from_bytes(start[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(start) == 10:
        width, height = struct.unpack_from("<HH", start, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None
