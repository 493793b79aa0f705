"""Finds and reads the images that rows name: inside their roots only, whole, and of a size that fits in memory."""

import errno
import hashlib
import io
import tarfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import fsspec
from PIL import Image, ImageOps, UnidentifiedImageError

from configs.errors import shown
from manifests.tars import IN_TAR, read_member
from manifests.urls import HostError, UrlError, allowed, fetch

MAX_BYTES = 256 * 2**20  # of one image file
URL = ("http://", "https://", "ftp://", "data:")
NOT_THERE = "no such file in the manifest's folder or in runtime.image_roots"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


class ImageError(ValueError):
    """An image that cannot be used; the message names it as the row does, not where it lies, and says why."""


class UnreachableError(ImageError):
    """An image whose storage or host failed: another try may succeed."""


# What says that a path leads to no file; any other OSError is the storage's.
GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
BROKEN = (KeyError, tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError)  # as damaged tars are read


@dataclass(frozen=True)
class Roots:
    """Where image paths may lead.

    Attributes:
        folders: That of each of the manifest's files, local or a URI. A row's paths start from its own
            file's, never from another's.
        max_pixels: Width times height, looked at before anything is decoded.
        hosts: Those that URLs may name, as host or host:port; without any, URLs are refused.
        max_bytes: Of one file.
        declared: Local folders or URIs by the config, where any row's paths are tried after its own folder.
        untrusted: Of all these folders those that only somebody else's plan names. Of a URI among them nothing is read; of a local
            folder only an image whose SHA-256 is known beforehand.
    """

    folders: tuple[str, ...]
    max_pixels: int = 64_000_000
    hosts: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES
    declared: tuple[str, ...] = ()
    untrusted: tuple[str, ...] = ()


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
    """The roots of a manifest: its files' folders, one a file, and those that the config declares."""
    own = tuple(_plain(str(Path(file).resolve().parent) if "://" not in file else file.rsplit("/", 1)[0]) for file in files)
    return with_declared(Roots(own, max_pixels, tuple(hosts)), declared)


def with_declared(roots: Roots, folders: Sequence[str]) -> Roots:
    """The roots with more folders declared, which come before those that were."""
    # A worker stands elsewhere.
    new = (_plain(folder) for folder in folders)
    absolute = (folder if "://" in folder else str(Path(folder).absolute()) for folder in new)
    return replace(roots, declared=tuple(dict.fromkeys([*absolute, *roots.declared])))


def _plain(folder: str) -> str:
    """A local root is a plain path, so that links out of it are noticed."""
    return folder.removeprefix("file://").removeprefix("local://")


def load(path: str, roots: Roots, file: int = 0, known: bool = False) -> Picture:
    """Read the image that a row names; its file is read once.

    Args:
        path: As the row gives it: relative to a root, or absolute and in one, or an allowed URL; `file.tar::member` for an
            image in a tar.
        roots: Where it may lead.
        file: Which of the manifest's files the row is in, counted from 0.
        known: Whether the caller holds the file against a SHA-256.

    Raises:
        UnreachableError: The storage or the host failed.
        ImageError: It leads elsewhere, is not there, is no image, is truncated, or is larger than allowed.
    """
    content = _content(path, locate(path, roots, file, known), roots)
    return Picture(_decode(content, shown(path), roots.max_pixels), hashlib.sha256(content).hexdigest())


def locate(path: str, roots: Roots, file: int = 0, known: bool = False) -> str:
    """The one place that a row's path leads to; arguments as for `load`.

    Raises:
        UnreachableError: The storage failed.
        ImageError: It leaves every root, is a URL that is not allowed, is not there, or would be in an untrusted root.
    """
    if _is_url(path):
        return _locate_url(path, roots)
    whole, _, member = path.partition(IN_TAR)
    outside, withheld = True, list[str]()
    for folder in (*roots.folders[file : file + 1], *roots.declared):
        place = _inside(folder, whole)
        if place is None:
            continue
        outside = False
        if folder in roots.untrusted and ("://" in folder or not known):
            withheld.append(folder)
            continue
        if _is_file(place, path):
            return place + (IN_TAR + member if member else "")
    if withheld:
        raise ImageError(f"{shown(path)}: not looked for in {shown(withheld[0])}, which only the dataset's plan names")
    if outside:
        raise ImageError(f"{shown(path)}: leads out of the manifest's folder; move it in, or declare runtime.image_roots")
    raise ImageError(f"{shown(path)}: {NOT_THERE}")


def _is_file(place: str, path: str) -> bool:
    try:
        # isfile would take a storage that fails for one that has no such file.
        system, name = fsspec.core.url_to_fs(place)
        return bool(system.info(name)["type"] == "file")
    except Exception as error:  # what storages raise, without credentials for one, has no common base
        if isinstance(error, GONE) or (isinstance(error, OSError) and error.errno in NO_NAME):
            return False
        raise _unreachable(path, error) from None


def _unreachable(path: str, error: Exception) -> UnreachableError:
    # The whole text of a storage's error may name places and endpoints.
    reason = getattr(error, "strerror", None) or type(error).__name__
    return UnreachableError(f"{shown(path)}: cannot be reached: {_in_line(reason)}")


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
        reason = getattr(error, "strerror", None) or "links in a circle"
        raise ImageError(f"{shown(path)}: cannot be found: {reason}") from None
    return str(place) if place.is_relative_to(root) else None


def _content(path: str, place: str, roots: Roots) -> bytes:
    most = roots.max_bytes
    try:
        if _is_url(path):
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
    except HostError as error:
        raise UnreachableError(f"{shown(path)}: cannot be reached: {error}") from None
    except GONE as error:
        raise ImageError(f"{shown(path)}: cannot be read: {error.strerror or 'no such file'}") from None
    except BROKEN as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ImageError(f"{shown(path)}: cannot be read: {_in_line(reason)}") from None
    except Exception as error:
        raise _unreachable(path, error) from None
    if not content:
        raise ImageError(f"{shown(path)}: empty")
    if len(content) > most:
        raise ImageError(f"{shown(path)}: larger than {most:,} bytes")
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


def is_image(file: Path) -> bool:
    """Whether a local file is an image by its content, of a kind that is read here, as far as its header tells."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(file, formats=FORMATS).close()
    except Exception:  # Pillow's readers raise nearly anything at what is no image
        return False
    return True


def mismatch(source: tuple[int, int], mask: tuple[int, int]) -> str | None:
    """What is wrong between an init image's (width, height) and its mask's, which cropped each by itself would not be aligned."""
    if source == mask:
        return None
    return f"mask_image: {mask[0]} x {mask[1]} pixels, but the init_image has {source[0]} x {source[1]}"


def _in_line(reason: object) -> str:
    return shown(" ".join(str(reason).split()), 300)
