"""Encodes images as files that say where they come from."""

import hashlib
import io
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from promptmill.configs.image_text import EXIF_IFD, LEFT_OUT, USER_COMMENT, XMP_NAMESPACE
from promptmill.configs.schema import ImageFormat

# IPTC's term for media made by a trained model.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

LONG, UNDEFINED = 4, 7  # TIFF's types
MOST_EXIF = 65_000  # bytes; a segment of a JPEG holds 65,533
MOST_XMP = 65_000  # bytes, of a JPEG, likewise

_NOT_IN_XML = re.compile("[\ufffe\uffff\ud800-\udfff]")

# Level 1 takes a fourth of the default's time for a few percent more bytes; encoding can outweigh a few-step model.
PNG_LEVEL = 1


@dataclass(frozen=True)
class Provenance:
    """Says how an image was made, in the words of Stable Diffusion web UIs, and in promptmill's own.

    Attributes:
        more: Further parameters by their names in web UIs, such as `Denoising strength`.
        request: All that the image depends on, as JSON that `manifests.own_pictures` reads; "" leaves it out.
    """

    prompt: str
    negative_prompt: str
    steps: int
    scheduler: str
    guidance_scale: float
    seed: int
    width: int
    height: int
    model: str
    more: Mapping[str, Any] = field(default_factory=dict)
    request: str = ""

    def parameters(self) -> str:
        """Return the `parameters` text that web UIs write into PNGs and read back."""
        lines = [self.prompt]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        facts = {
            "Steps": self.steps,
            "Sampler": self.scheduler,
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
            **self.more,
            "Version": "promptmill",
        }
        # A value with a comma or a colon is quoted, as their reader expects.
        quoted = (f"{name}: {_quote(str(value))}" for name, value in facts.items())
        return "\n".join([*lines, ", ".join(quoted)])

    def xmp(self, most: int | None = None) -> bytes:
        """Return an XMP packet that marks the image as made by a trained model, and has the request in at most so many bytes."""
        packet = _xmp_packet(_NOT_IN_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", self.request))
        return packet if most is None or len(packet) <= most else _xmp_packet(LEFT_OUT)


def _xmp_packet(request: str) -> bytes:
    own = f" xmlns:promptmill={quoteattr(XMP_NAMESPACE)} promptmill:request={quoteattr(request)}" if request else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f" Iptc4xmpExt:DigitalSourceType={quoteattr(DIGITAL_SOURCE_TYPE)}{own}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def _quote(value: str) -> str:
    return '"' + value.replace('"', '\\"') + '"' if any(c in value for c in ',:\n"') else value


def encode_image(pixels: np.ndarray, form: ImageFormat, quality: int, provenance: Provenance) -> bytes:
    """Encode an image as a file; the same bytes for the same input and version of the codec.

    Args:
        pixels: The image, (H, W, 3) uint8, sRGB.
        form: The file's format: png is lossless, and so is webp at quality 100.
        quality: 1 to 100, for jpg and webp.
        provenance: Written into the file: in png as PNG text and XMP, in the others as XMP and EXIF's user comment.
    """
    file = io.BytesIO()
    FORMATS[form].save(Image.fromarray(pixels), file, quality, provenance)
    return file.getvalue()


def _save_png(image: Image.Image, file: io.BytesIO, quality: int, provenance: Provenance) -> None:
    text = PngInfo()
    # Latin-1 goes in as tEXt, as web UIs do; anything else needs iTXt.
    parameters = provenance.parameters()
    text.add_text("parameters", parameters) if _is_latin1(parameters) else text.add_itxt("parameters", parameters)
    text.add_itxt("XML:com.adobe.xmp", provenance.xmp().decode())
    image.save(file, "PNG", pnginfo=text, compress_level=PNG_LEVEL)


def _save_jpg(image: Image.Image, file: io.BytesIO, quality: int, provenance: Provenance) -> None:
    exif, xmp = user_comment(provenance.parameters()), provenance.xmp(MOST_XMP)
    image.save(file, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, xmp=xmp, exif=exif)


def _save_webp(image: Image.Image, file: io.BytesIO, quality: int, provenance: Provenance) -> None:
    exif, xmp = user_comment(provenance.parameters()), provenance.xmp()
    image.save(file, "WEBP", quality=quality, lossless=quality == 100, method=4, xmp=xmp, exif=exif)


def _webp_is_lossless(content: bytes) -> bool:
    """Return whether the image of a WebP file is in a VP8L chunk."""
    at = 12
    while at + 8 <= len(content) and content[at : at + 4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return content[at : at + 4] == b"VP8L"


@dataclass(frozen=True)
class Format:
    """Describes one format of a dataset's images.

    Attributes:
        pillow: Pillow's name of the format.
        save: Writes an image, with a quality from 1 to 100 and its provenance.
        begins: Returns whether a file begins as those of the format do.
        lossless: Returns whether decoding a file of the format gives back the pixels that were encoded.
        has_quality: Whether the quality means anything.
        says: Where a file says how it was made, in words.
    """

    pillow: str
    save: Callable[[Image.Image, io.BytesIO, int, Provenance], None]
    begins: Callable[[bytes], bool]
    lossless: Callable[[bytes], bool]
    has_quality: bool = True
    says: str = "in EXIF's user comment"


# By the endings of their files.
FORMATS: dict[str, Format] = {
    "png": Format(
        "PNG",
        _save_png,
        lambda content: content.startswith(b"\x89PNG\r\n\x1a\n"),
        lambda content: True,
        has_quality=False,
        says="as PNG text `parameters`",
    ),
    "jpg": Format("JPEG", _save_jpg, lambda content: content.startswith(b"\xff\xd8\xff"), lambda content: False),
    "webp": Format("WEBP", _save_webp, lambda content: content[:4] == b"RIFF" and content[8:12] == b"WEBP", _webp_is_lossless),
}
assert set(FORMATS) == set(get_args(ImageFormat))


def user_comment(text: str) -> bytes:
    """Return an EXIF block whose only entry is the user comment, in UTF-16 of the block's byte order.

    The block is written here, since Pillow writes a comment as BYTE where the EXIF standard says UNDEFINED, and web UIs fail at it.
    A text that does not fit into a JPEG loses its middle, where an ellipsis stands; its last line stays whole.
    """
    room = (MOST_EXIF - 8) // 2  # UTF-16 code units, of which no character takes more than two
    if len(text.encode("utf-16-be")) > 2 * room:
        head, _, last = text.rpartition("\n")
        kept = head.encode("utf-16-be")[: 2 * (room - 2 - min(len(last), 1000) * 2)].decode("utf-16-be", "ignore")
        text = f"{kept}…\n{last[:1000]}"
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    first, second = 8, 8 + 2 + 12 + 4  # where the two directories begin, of one entry each
    return b"".join(
        (
            b"Exif\0\0",
            struct.pack(">2sHI", b"MM", 42, first),
            struct.pack(">HHHIII", 1, EXIF_IFD, LONG, 1, second, 0),
            struct.pack(">HHHIII", 1, USER_COMMENT, UNDEFINED, len(comment), second + 18, 0),
            comment,
        )
    )


def _is_latin1(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def pixel_sha256(pixels: np.ndarray) -> str:
    """Return the SHA-256 of an image before encoding, in hexadecimal: of its height and width as text, then its values row by row.

    Args:
        pixels: The image, (H, W, 3) uint8.
    """
    height, width, _ = pixels.shape
    digest = hashlib.sha256(f"{height}x{width}".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()
