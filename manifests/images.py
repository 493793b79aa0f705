"""Finds and reads the images that rows name: inside their roots only, whole, and of a size that fits in memory."""

import io
import tarfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_BYTES = 256 * 2**20  # of one image file
IN_TAR = "::"  # as sources name a member: file.tar::member


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Roots:
    """Where image paths may lead.

    Attributes:
        folders: Local folders or URIs; relative paths are tried in each, the manifest's own first.
        max_pixels: Width times height, looked at before anything is decoded.
    """

    folders: tuple[str, ...]
    max_pixels: int = 64_000_000


def roots_of(files: Sequence[str], declared: Sequence[str], max_pixels: int) -> Roots:
    """The roots of a manifest: its files' folders, then those that the config declares."""
    own = (_folder(file) for file in files)
    # A local root is a plain path, so that links out of it are noticed.
    folders = (folder.removeprefix("file://").removeprefix("local://") for folder in [*own, *declared])
    return Roots(tuple(dict.fromkeys(folders)), max_pixels)


def _folder(file: str) -> str:
    return str(Path(file).resolve().parent) if "://" not in file else file.rsplit("/", 1)[0]


def locate(path: str, roots: Roots) -> str:
    """The one place that a row's path leads to.

    Raises:
        ImageError: It leaves every root, is a URL, or is not there.
    """
    file, _, member = path.partition(IN_TAR)
    if file.startswith(("http://", "https://", "ftp://", "data:")):
        raise ImageError(f"{_short(path)}: URLs are not fetched; download it beside the manifest")
    outside = True
    for folder in roots.folders:
        place = _inside(folder, file)
        if place is None:
            continue
        outside = False
        system, name = fsspec.core.url_to_fs(place)
        if system.isfile(name):
            return place + (IN_TAR + member if member else "")
    if outside:
        raise ImageError(f"{_short(path)}: leads out of {' and '.join(roots.folders)}; move it in, or declare runtime.image_roots")
    raise ImageError(f"{_short(path)}: no such file in {' or '.join(roots.folders)}")


def _inside(folder: str, path: str) -> str | None:
    """Where a path leads from a root, or None where that is outside it; links on a local disk are followed first."""
    if "://" in folder:
        if "://" in path:
            path = path.removeprefix(folder + "/")
        parts = PurePosixPath(path).parts
        return None if "://" in path or not parts or parts[0] == "/" or ".." in parts else f"{folder}/{path}"
    if "://" in path or "\0" in path:
        return None
    root = Path(folder).resolve()
    place = (root / path).resolve()
    return str(place) if place.is_relative_to(root) else None


def read_image(place: str, roots: Roots) -> Image.Image:
    """Read a located image whole: turned as its EXIF says, first frame, mode as in the file.

    Raises:
        ImageError: Not an image, truncated, or larger than allowed.
    """
    content = _content(place)
    name = _short(PurePosixPath(place).name)
    try:
        with warnings.catch_warnings():
            # Our own limit is checked before decoding; Pillow's warning at another size would only confuse.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"))
        if image.width * image.height > roots.max_pixels:
            raise ImageError(f"{name}: {image.width} x {image.height} pixels are more than the {roots.max_pixels:,} allowed")
        image.load()
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image of a kind that is read here (png, jpg, webp, bmp, tiff, gif)") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: many more pixels than can be decoded safely") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything at broken files
        raise ImageError(f"{name}: cannot be decoded: {error}") from None


def _content(place: str) -> bytes:
    file, _, member = place.partition(IN_TAR)
    try:
        with fsspec.open(file, "rb") as stream:
            if not member:
                content = stream.read(MAX_BYTES + 1)
            else:
                with tarfile.open(fileobj=stream, mode="r:*") as tar:
                    packed = tar.extractfile(member)
                    content = packed.read(MAX_BYTES + 1) if packed else b""
    except (OSError, KeyError, tarfile.TarError) as error:
        raise ImageError(f"{_short(place)}: cannot be read: {error}") from None
    if not content:
        raise ImageError(f"{_short(place)}: empty")
    if len(content) > MAX_BYTES:
        raise ImageError(f"{_short(place)}: larger than {MAX_BYTES // 2**20} MiB")
    return content


def _short(path: str) -> str:
    return path if len(path) <= 100 else path[:60] + "…" + path[-39:]
