"""Finds the place that an image path of a row leads to: inside the manifest's folder or a declared root, and nowhere else."""

import errno
import functools
import os
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.parse import unquote

from promptmill.configs.errors import shown
from promptmill.manifests.files import system_of
from promptmill.manifests.urls import NotAllowedError, UrlError, allowed

IN_FILE = "::"  # between a tar and its member, or a Parquet file and its cell
MAX_BYTES = 256 * 2**20  # of one image file
URL = ("http://", "https://", "ftp://", "data:")
LOCAL = ("file://", "local://")
NOT_THERE = "no such file in the manifest's folder or in runtime.image_roots"
MOST_NAMES = 100_000  # of a folder that are looked at for what lies near


class Fault(StrEnum):
    """Names the reason why an image cannot be used, and so which option would help."""

    PLACE = "place"  # where it lies, or what lies there
    HOST = "host"  # its host is not allowed
    SIZE = "size"  # it has more pixels than are allowed


class ImageError(ValueError):
    """Reports an image that cannot be used; the message names the path as the row has it, not its place, and the reason.

    Attributes:
        fault: The fault of this type of error.
        advice: More words for a person at a terminal, with places of this machine; never recorded.
    """

    fault: ClassVar[Fault] = Fault.PLACE

    def __init__(self, message: str, advice: str = ""):
        super().__init__(message)
        self.advice = advice


class NotThereError(ImageError):
    """Reports an image that is in none of the folders where it may lie."""


class HostRefusedError(ImageError):
    """Reports an image at a host that is not allowed."""

    fault = Fault.HOST


class TooManyPixelsError(ImageError):
    """Reports an image that has more pixels than are allowed."""

    fault = Fault.SIZE


class UnreachableError(ImageError):
    """Reports an image whose storage or host failed: another try may succeed."""


# Errors that mean that a path leads to no file; any other OSError is the storage's.
GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


@dataclass(frozen=True)
class Roots:
    """Holds the folders and hosts that image paths may lead to.

    Attributes:
        folders: One folder for each of the manifest's files, as the file was given, local or a URI. A row's paths start from its
            own file's folder, never from another's.
        max_pixels: Largest width times height, checked before anything is decoded.
        hosts: Hosts that URLs may name, as host or host:port; without any, URLs are refused.
        max_bytes: Largest size of one file, in bytes.
        declared: Local folders or URIs by the config, where any row's paths are tried after its own folder.
        names: The name of each of the manifest's files in its folder: a manifest may name images in itself, though it is a link.
        untrusted: The folders among all these that only somebody else's plan names. Of an untrusted URI nothing is read; of an
            untrusted local folder only an image whose SHA-256 is known beforehand.
    """

    folders: tuple[str, ...]
    max_pixels: int = 64_000_000
    hosts: tuple[str, ...] = ()
    max_bytes: int = MAX_BYTES
    declared: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    untrusted: tuple[str, ...] = ()

    def withholds(self, folder: str, known: bool) -> bool:
        """Return whether an image may not be read from a folder, given whether the image's SHA-256 is known."""
        return folder in self.untrusted and ("://" in folder or not known)


def roots_of(files: Sequence[str], declared: Sequence[str], max_pixels: int, hosts: Sequence[str] = ()) -> Roots:
    """Return the roots of a manifest: its files' folders, one a file, and those that the config declares.

    The folder of a file is that of its path as given: a file that is a link has its images beside the link.
    """
    own = tuple(_plain(str(Path(file).absolute().parent) if "://" not in file else file.rsplit("/", 1)[0]) for file in files)
    names = tuple(file.rpartition("/")[2] for file in files)
    return with_declared(Roots(own, max_pixels, tuple(hosts), names=names), declared)


def with_declared(roots: Roots, folders: Sequence[str]) -> Roots:
    """Return the roots with more folders declared, which come before those that were."""
    # A worker stands elsewhere.
    new = (_plain(folder) for folder in folders)
    absolute = (folder if "://" in folder else str(Path(folder).absolute()) for folder in new)
    return replace(roots, declared=tuple(dict.fromkeys([*absolute, *roots.declared])))


def _plain(folder: str) -> str:
    """Return a local root as a plain path, so that links out of it are noticed."""
    return folder.removeprefix("file://").removeprefix("local://")


def locate(path: str, roots: Roots, file: int = 0, known: bool = False) -> str:
    """Return the one place that a row's path leads to, with its member as the row has it; arguments and errors as for `find`."""
    place, member = find(path, roots, file, known)
    return place + (IN_FILE + member if member else "")


def find(path: str, roots: Roots, file: int = 0, known: bool = False) -> tuple[str, str]:
    """Find the one file that a row's path leads to, and the member or cell in the file, or "".

    Args:
        path: The path as the row gives it: relative to a root, or absolute and in one, or an allowed URL; `file.tar::member` for an
            image in a tar, `file.parquet::column/row` for one in a Parquet file.
        roots: Where the path may lead.
        file: Index of the row's file in the manifest, counted from 0.
        known: Whether the caller compares the file with a known SHA-256.

    Raises:
        UnreachableError: The storage failed.
        ImageError: The path leaves every root, is a URL that is not allowed, leads to no file, or leads into an untrusted root.
    """
    if is_url(path):
        return _locate_url(path, roots), ""
    whole, _, member = path.partition(IN_FILE)
    if member and not whole.lower().endswith((".tar", ".parquet")):
        with suppress(ImageError):  # a file whose own name has colons
            return _find(path, path, roots, file, known), ""
    return _find(whole, path, roots, file, known), member


def _find(whole: str, path: str, roots: Roots, file: int, known: bool) -> str:
    """Return the place of a file; arguments as for `find`, with the path for error messages."""
    outside, link, withheld = True, None, list[str]()
    declared = [folder for folder in roots.declared if not roots.withholds(folder, known)]
    for written in _readings(whole):
        for number, folder in enumerate((*roots.folders[file : file + 1], *roots.declared)):
            own = number == 0 and roots.names[file : file + 1] == (written,)
            place = _inside(folder, written, declared, path, own)
            if isinstance(place, _Link):
                link = link or place
                continue
            if place is None:
                continue
            outside = False
            if roots.withholds(folder, known):
                withheld.append(folder)
            elif _is_file(place, path):
                return place
    if withheld:
        raise ImageError(f"{shown(path)}: not looked for in {shown(withheld[0])}, which only the dataset's plan names")
    if link:
        raise link.error(path)
    if outside:
        raise ImageError(f"{shown(path)}: leads out of the manifest's folder; move it in, or declare runtime.image_roots")
    raise NotThereError(f"{shown(path)}: {NOT_THERE}{_near(whole, roots, file)}", _moved(roots, file))


def _readings(path: str) -> tuple[str, ...]:
    """Return the readings of a path without the scheme of a local file: as written, and with its percent signs decoded."""
    for scheme in LOCAL:
        if path.lower().startswith(scheme):
            plain = path[len(scheme) :].removeprefix("localhost")
            return tuple(dict.fromkeys([plain, unquote(plain)]))
    return (path,)


def _is_file(place: str, path: str) -> bool:
    try:
        # isfile would take a storage that fails for one that has no such file.
        system, name = system_of(place)
        return bool(system.info(name)["type"] == "file")
    except Exception as error:  # the errors of storages, for missing credentials for example, have no common base
        if isinstance(error, GONE) or (isinstance(error, OSError) and error.errno in NO_NAME):
            return False
        raise unreachable(path, error) from None


def unreachable(path: str, error: Exception) -> UnreachableError:
    """Return the error of an image whose storage failed, in words that name neither places nor endpoints."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    return UnreachableError(f"{shown(path)}: cannot be reached: {in_line(reason)}")


def in_line(reason: object) -> str:
    """Return a library's error text as part of one line."""
    return shown(" ".join(str(reason).split()), 300)


def is_url(path: str) -> bool:
    """Return whether a row's path is a URL rather than a path of a storage."""
    return path.lower().startswith(URL)


def _locate_url(url: str, roots: Roots) -> str:
    if not roots.hosts:
        raise HostRefusedError(
            f"{shown(url)}: URLs are not fetched; download it beside the manifest, or allow its host in runtime.url_hosts"
        )
    try:
        allowed(url, roots.hosts)
    except NotAllowedError as error:
        raise HostRefusedError(f"{shown(url)}: {error}") from None
    except UrlError as error:
        raise ImageError(f"{shown(url)}: {error}") from None
    return url


@dataclass(frozen=True)
class _Link:
    """Holds a link inside a root that leads out of every root: its path from the root, the text of the link, and its target."""

    link: str
    says: str
    target: Path

    def error(self, path: str) -> ImageError:
        """Return the error of a path through this link."""
        folder = self.target if self.target.is_dir() else self.target.parent
        return ImageError(
            f"{shown(path)}: leads out of the manifest's folder: {shown(self.link)} is a link to {shown(self.says)};"
            " move it in, or declare the folder that it leads into in runtime.image_roots",
            f" (--set 'runtime.image_roots=[{shown(str(folder), 300)}]')",
        )


def _inside(folder: str, path: str, declared: Sequence[str], whole: str, own: bool) -> str | _Link | None:
    """Return where a path leads from a root: None where the place is outside of the root, a `_Link` where links lead out of all
    roots.

    Args:
        folder: The root.
        path: Relative to the root, or absolute.
        declared: The roots that links may lead into besides.
        whole: The path as the row gives it, for errors.
        own: Whether the path is that of the manifest itself, which may be a link to anywhere.
    """
    if "://" in folder:
        if "://" in path:
            path = path.removeprefix(folder + "/")
        parts = PurePosixPath(path).parts
        return None if "://" in path or not parts or parts[0] == "/" or ".." in parts else f"{folder}/{path}"
    if "://" in path or "\0" in path:
        return None
    if own:
        return f"{folder}/{path}"
    root = _real(folder)
    try:
        place = Path(folder, path).resolve()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        reason = getattr(error, "strerror", None) or "links in a circle"
        raise ImageError(f"{shown(whole)}: cannot be found: {reason}") from None
    if place.is_relative_to(root):
        return str(place)
    # The path as written has to be inside this root, so that a link, and no dots, leads into the other root.
    lexical = os.path.normpath(Path(folder, path))
    if not any(Path(lexical).is_relative_to(start) for start in (folder, root)):
        return None
    if any(place.is_relative_to(_real(other)) for other in declared if "://" not in other):
        return str(place)
    return _link_of(Path(folder), Path(lexical), place)


@functools.lru_cache(1024)
def _real(folder: str) -> Path:
    return Path(folder).resolve()


def _link_of(folder: Path, lexical: Path, place: Path) -> _Link | None:
    """Return the first link on the way from a root to a place outside of the root."""
    step, root = folder, folder.resolve()
    for part in lexical.relative_to(folder).parts if lexical.is_relative_to(folder) else ():
        step = step / part
        if step.is_symlink() and not (target := step.resolve()).is_relative_to(root):
            return _Link(str(step.relative_to(folder)), str(step.readlink()), target)
    return None


def _moved(roots: Roots, file: int) -> str:
    """Return advice for a manifest that is a link and has its images beside the link's target, or ""."""
    if not roots.names or any("://" in folder for folder in roots.folders[file : file + 1]):
        return ""
    manifest = Path(roots.folders[file], roots.names[file])
    if not manifest.is_symlink():
        return ""
    folder = shown(str(manifest.resolve().parent), 300)
    return f" (the manifest is a link; for images beside what it leads to: --set 'runtime.image_roots=[{folder}]')"


def _near(path: str, roots: Roots, file: int) -> str:
    """Return a hint at a file of a local root whose path differs in case, slashes, ending or form of Unicode alone, or ""."""
    for folder in (*roots.folders[file : file + 1], *roots.declared):
        if "://" in folder or "://" in path or "\0" in path:
            continue
        found = nearest_path(folder, path)
        if found is not None:
            return f"; {shown(found)} lies there"
    return ""


def nearest_path(folder: str, path: str) -> str | None:
    """Return the path under a local folder that equals another one but for case, slashes, spaces, ending or form of Unicode."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/":
        return None
    step = Path(folder)
    for last, part in zip([*[False] * (len(parts) - 1), True], parts, strict=True):
        if not last and (step / part).is_dir():
            step = step / part
            continue
        names, stems = _listing(str(step))
        name = names.get(_folded(part)) or (stems.get(_folded(part).rpartition(".")[0]) if last and "." in part else None)
        if name is None:
            return None
        step = step / name
    return str(step.relative_to(folder)) if step.is_file() else None


@functools.lru_cache(16)
def _listing(folder: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names in a folder by their folded form (no case, one form of Unicode): whole, and without their endings."""
    names: dict[str, str] = {}
    stems: dict[str, str] = {}
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(MOST_NAMES), strict=False):
                folded = _folded(entry.name)
                names[folded] = min(entry.name, names.get(folded, entry.name))
                stem = folded.rpartition(".")[0]
                if stem:
                    stems[stem] = min(entry.name, stems.get(stem, entry.name))
    except OSError:
        pass
    return names, stems


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()
