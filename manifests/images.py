"""Finds and reads the images that rows name: inside their roots only, whole, and of a size that fits in memory."""

import hashlib
import io
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from PIL import Image, ImageOps, UnidentifiedImageError

from promptmill.configs.errors import shown
from promptmill.manifests.cells import is_parquet, read_cell
from promptmill.manifests.drawings import MOST_BYTES, DrawingError, checked, draw, is_drawing, is_inline
from promptmill.manifests.files import open_file
from promptmill.manifests.pointers import HEAD, pointer
from promptmill.manifests.roots import (
    GONE,
    Fault,
    HostRefusedError,
    ImageError,
    NotThereError,
    Roots,
    TooManyPixelsError,
    UnreachableError,
    find,
    in_line,
    is_url,
    locate,
    roots_of,
    unreachable,
    with_declared,
)
from promptmill.manifests.tars import read_member
from promptmill.manifests.urls import HostError, NotAllowedError, fetch

__all__ = [
    "Fault",
    "ImageError",
    "NotThereError",
    "Roots",
    "UnreachableError",
    "elongation",
    "load",
    "locate",
    "mismatch",
    "roots_of",
    "with_declared",
]

FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"]
# A reference's longer side by its shorter one: the shorter is scaled to what the encoder takes, and with it the longer.
MOST_STRETCHED = 100
# The same of a picture that a model takes beside others, as FLUX.2's pipeline does.
MOST_STRETCHED_PICTURE = 8
KINDS = "png, jpg, webp, bmp, tiff, gif, avif, svg"
HEIC_NEEDS = "; HEIC and HEIF need `pip install 'promptmill[heic]'`"
try:
    import pillow_heif
except ImportError:
    HEIC = HEIC_NEEDS
else:
    pillow_heif.register_heif_opener(thumbnails=False)
    FORMATS.append("HEIF")
    KINDS, HEIC = f"{KINDS}, heic", ""


# What the readers of tars and Parquet files raise for damaged files.
BROKEN = (KeyError, IndexError, tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, pyarrow.ArrowException)


@dataclass(frozen=True)
class Picture:
    """Holds one image as read.

    Attributes:
        image: The first frame, in the file's mode, turned as its EXIF says.
        sha256: SHA-256 of the file's bytes, in hex.
    """

    image: Image.Image
    sha256: str


def load(
    path: str,
    roots: Roots,
    file: int = 0,
    known: bool = False,
    size: tuple[int, int] | None = None,
    read: Callable[[str, Roots, int, bool], bytes] | None = None,
) -> Picture:
    """Read the image that a row names; its file is read once.

    Args:
        path: The path as the row gives it: relative to a root, or absolute and in one, or an allowed URL; `file.tar::member` for an
            image in a tar; or an SVG drawing itself.
        roots: Where the path may lead.
        file: Index of the row's file in the manifest, counted from 0.
        known: Whether the caller compares the file with a known SHA-256.
        size: Width and height that an SVG drawing is drawn to cover; None: as large as it says.
        read: Takes the place of `content_of`.

    Raises:
        UnreachableError: The storage or the host failed.
        ImageError: The path leads elsewhere or to no file, or the file is no image, is truncated, or is larger than allowed.
    """
    content = (read or content_of)(path, roots, file, known)
    return Picture(_decode(content, shown(path), roots.max_pixels, size), hashlib.sha256(content).hexdigest())


def content_of(path: str, roots: Roots, file: int = 0, known: bool = False) -> bytes:
    """Return the bytes of the file that a row names, or of a drawing that it holds; arguments and errors are those of `load`."""
    if is_inline(path):
        return path.encode()
    return _content(path, *find(path, roots, file, known), roots)


def _content(path: str, place: str, member: str, roots: Roots) -> bytes:
    most = roots.max_bytes
    try:
        if is_url(path):
            content = fetch(place, roots.hosts, most)
        elif member:
            content = (read_cell if is_parquet(place) else read_member)(place, member, most + 1)
        else:
            with open_file(place) as stream:
                # A read beyond the file's end would allocate memory for all the bytes asked for.
                size = stream.seek(0, io.SEEK_END)
                stream.seek(0)
                content = stream.read(min(size, most + 1))
    except NotAllowedError as error:
        raise HostRefusedError(f"{shown(path)}: cannot be read: {in_line(error)}") from None
    except HostError as error:
        raise UnreachableError(f"{shown(path)}: cannot be reached: {error}") from None
    except GONE as error:
        raise ImageError(f"{shown(path)}: cannot be read: {error.strerror or 'no such file'}") from None
    except BROKEN as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ImageError(f"{shown(path)}: cannot be read: {in_line(reason)}") from None
    except Exception as error:
        raise unreachable(path, error) from None
    if not content:
        raise ImageError(f"{shown(path)}: empty")
    if (found := pointer(content[:HEAD])) is not None:
        raise ImageError(f"{shown(path)}: {found}")
    if len(content) > most:
        raise ImageError(f"{shown(path)}: larger than {most:,} bytes")
    return content


def _decode(content: bytes, name: str, max_pixels: int, size: tuple[int, int] | None) -> Image.Image:
    if is_drawing(content):
        try:
            return draw(content, max_pixels, size)
        except DrawingError as error:
            raise ImageError(f"{name}: {error}") from None
    try:
        with warnings.catch_warnings():
            # Pillow's warnings, of odd metadata or of another limit than ours, do not concern the pixels.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise TooManyPixelsError(f"{name}: {image.width} x {image.height} pixels are more than the {max_pixels:,} allowed")
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        more = HEIC if content[4:8] == b"ftyp" else ""
        raise ImageError(f"{name}: not an image of a kind that is read here ({KINDS}){more}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: many more pixels than can be decoded safely") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything at broken files
        raise ImageError(f"{name}: cannot be decoded: {in_line(error)}") from None


def is_image(file: Path) -> bool:
    """Return whether a local file is an image of a supported format, as far as its header tells, or a drawing that can be drawn."""
    try:
        with warnings.catch_warnings(), file.open("rb") as opened:
            warnings.simplefilter("ignore")
            content = opened.read(MOST_BYTES + 1)
            if is_drawing(content):
                checked(content)  # since other XML and HTML, which may hold what is secret, begins likewise
                return True
            opened.seek(0)
            Image.open(opened, formats=FORMATS).close()
    except Exception:  # Pillow's readers raise nearly anything at what is no image
        return False
    return True


def narrowness(size: tuple[int, int]) -> str:
    """Return why a picture of this size (width, height) is no reference, or "": it is so narrow that its middle shows nothing."""
    if max(size) <= MOST_STRETCHED * min(size):
        return ""
    said = f"{size[0]}×{size[1]} pixels: one side is more than {MOST_STRETCHED} times the other"
    return f"{said}, and the encoder takes the middle of a picture alone"


def elongation(size: tuple[int, int]) -> str:
    """Return why a picture of this size (width, height) is none that a model takes beside others, or "": it is too elongated."""
    if max(size) <= MOST_STRETCHED_PICTURE * min(size):
        return ""
    return f"{size[0]}×{size[1]} pixels: one side is more than {MOST_STRETCHED_PICTURE} times the other; crop the picture"


def mismatch(source: tuple[int, int], mask: tuple[int, int]) -> str | None:
    """Return the problem of an init image and a mask whose (width, height) differ, since crops of both would not be aligned."""
    if source == mask:
        return None
    return f"mask_image: {mask[0]} x {mask[1]} pixels, but the init_image has {source[0]} x {source[1]}"
