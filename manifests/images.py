"""Finds and reads the images that rows name: inside their roots only, whole, and of a size that fits in memory."""

import hashlib
import io
import tarfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec
from PIL import Image, ImageOps, UnidentifiedImageError

from configs.errors import shown
from manifests.tars import IN_TAR, read_member
from manifests.urls import UrlError, allowed, fetch

MAX_BYTES = 256 * 2**20  # of one image file
URL = ("http://", "https://", "ftp://", "data:")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Roots:
    """Where image paths may lead.

    Attributes:
        folders: Local folders or URIs; relative paths are tried in each, the manifest's own first.
        max_pixels: Width times height, looked at before anything is decoded.
        hosts: Those that URLs may name, as host or host:port; without any, URLs are refused.
        max_bytes: Of one file.
    """

    folders: tuple[str, ...]
    max_pixels: int = 64_000_000
    hosts: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True)
class Picture:
    """An image as read.

    Attributes:
        image: Turned as its EXIF says; the first frame, the mode as in the file.
        sha256: Of the file's bytes, in hex.
    """

    image: Image.Image
    sha256: str


def roots_of(files: Sequence[str], declared: Sequence[str], max_pixels: int, hosts: Sequence[str] = ()) -> Roots:
    """The roots of a manifest: its files' folders, then those that the config declares."""
    own = (_folder(file) for file in files)
    # A local root is a plain path, so that links out of it are noticed.
    folders = (folder.removeprefix("file://").removeprefix("local://") for folder in [*own, *declared])
    return Roots(tuple(dict.fromkeys(folders)), max_pixels, tuple(hosts))


def _folder(file: str) -> str:
    return str(Path(file).resolve().parent) if "://" not in file else file.rsplit("/", 1)[0]


def load(path: str, roots: Roots) -> Picture:
    """Read the image that a row names; its file is read once.

    Args:
        path: As the row gives it: relative to a root, or absolute and in one, or an allowed URL; `file.tar::member` for an
            image in a tar.
        roots: Where it may lead.

    Raises:
        ImageError: It leads elsewhere, is not there, is no image, is truncated, or is larger than allowed.
    """
    place = locate(path, roots)
    content = _content(place, roots, _is_url(path))
    return Picture(_decode(content, shown(PurePosixPath(path).name), roots.max_pixels), hashlib.sha256(content).hexdigest())


def locate(path: str, roots: Roots) -> str:
    """The one place that a row's path leads to.

    Raises:
        ImageError: It leaves every root, is a URL that is not allowed, or is not there.
    """
    if _is_url(path):
        return _locate_url(path, roots)
    file, _, member = path.partition(IN_TAR)
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
        raise ImageError(f"{shown(path)}: leads out of {' and '.join(roots.folders)}; move it in, or declare runtime.image_roots")
    raise ImageError(f"{shown(path)}: no such file in {' or '.join(roots.folders)}")


def _is_url(path: str) -> bool:
    return path.lower().startswith(URL)


def _locate_url(url: str, roots: Roots) -> str:
    if not roots.hosts:
        raise ImageError(
            f"{shown(url)}: URLs are not fetched; download it beside the manifest, or allow its host in runtime.url_hosts"
        )
    try:
        allowed(url, roots.hosts)
    except UrlError as error:
        raise ImageError(f"{shown(url)}: {error}") from None
    return url


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
    try:
        place = (root / path).resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise ImageError(f"{shown(path)}: cannot be found: {error}") from None
    return str(place) if place.is_relative_to(root) else None


def _content(place: str, roots: Roots, by_url: bool) -> bytes:
    most = roots.max_bytes
    try:
        if by_url:
            content = fetch(place, roots.hosts, most)
        elif IN_TAR in place:
            file, _, member = place.partition(IN_TAR)
            content = read_member(file, member, most + 1)
        else:
            with fsspec.open(place, "rb") as stream:
                # Asked for more than there is, it would set memory aside for all of it.
                size = stream.seek(0, io.SEEK_END)
                stream.seek(0)
                content = stream.read(min(size, most + 1))
    except (OSError, KeyError, tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise ImageError(f"{shown(place)}: cannot be read: {_in_line(reason)}") from None
    if not content:
        raise ImageError(f"{shown(place)}: empty")
    if len(content) > most:
        raise ImageError(f"{shown(place)}: larger than {most:,} bytes")
    return content


def _decode(content: bytes, name: str, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # What Pillow merely warns of, odd metadata or another limit than ours, does not concern the pixels.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise ImageError(f"{name}: {image.width} x {image.height} pixels are more than the {max_pixels:,} allowed")
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image of a kind that is read here (png, jpg, webp, bmp, tiff, gif)") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: many more pixels than can be decoded safely") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything at broken files
        raise ImageError(f"{name}: cannot be decoded: {_in_line(error)}") from None


def _in_line(reason: object) -> str:
    return shown(" ".join(str(reason).split()), 300)
