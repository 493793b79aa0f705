"""Opens the files of manifests and images by their literal paths: brackets, stars or colons in a path are no patterns."""

import functools
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


def system_of(file: str) -> tuple[Any, str]:
    """Return the fsspec file system that a path or URI lies in, and its path there."""
    if "://" not in file:
        return _here(), file
    # A storage that caches listings would search a folder's whole listing for each file of the folder.
    unlisted = {"use_listings_cache": False} if "::" not in file else {}
    found: tuple[Any, str] = fsspec.core.url_to_fs(file, **unlisted)
    return found


@functools.cache
def _here() -> LocalFileSystem:
    return LocalFileSystem()


def open_file(file: str, block_size: int | None = None) -> IO[bytes]:
    """Open one file for reading, by path or URI; fsspec's own open takes brackets in a path for a pattern.

    Raises:
        OSError: The file is not there or cannot be read.
    """
    system, path = system_of(file)
    opened: IO[bytes] = system.open(path, "rb", **({"block_size": block_size} if block_size else {}))
    return opened


def is_local(system: Any) -> bool:
    """Return whether a file system is that of this machine."""
    return "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)
