"""Reads and writes files on the storages that fsspec knows and obstore does not: SFTP, HDFS, a process's memory and others."""

import errno
from collections.abc import Callable

import fsspec

from promptmill.shards.retries import Result, persistently
from promptmill.shards.storage_errors import check_size


def _persistently(uri: str, action: Callable[[fsspec.AbstractFileSystem, str], Result]) -> Result:
    """Return what an idempotent action on a storage and a path in it returns, tried again while it may help."""
    system, path = fsspec.core.url_to_fs(uri)

    def once() -> Result:
        system.invalidate_cache()  # a kept listing would hide what others wrote meanwhile
        return action(system, path)

    return persistently(once)


def put(uri: str, content: bytes) -> None:
    """Write a file, replacing the one that is there; tried again while it fails for a passing reason."""
    _persistently(uri, lambda system, path: system.pipe_file(path, content))


def put_if_absent(uri: str, content: bytes) -> bool:
    """Write a file unless there is one; returns False where one is there, which may be one's own if an answer was lost."""

    def create(system: fsspec.AbstractFileSystem, path: str) -> bool:
        try:
            # A storage that has no exclusive mode says so.
            system.pipe_file(path, content, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or error.errno == errno.EEXIST:
                return False
            raise
        return True

    return _persistently(uri, create)


def get(uri: str, most: int | None) -> bytes:
    """Return a file's content; one of more than `most` bytes is not read, None for any size."""
    if most is not None:
        check_size(uri, int(_persistently(uri, lambda system, path: system.size(path)) or 0), most)
    return _persistently(uri, lambda system, path: system.cat_file(path))


def get_range(uri: str, start: int, stop: int) -> bytes:
    """Return a file's bytes from `start` up to `stop`, or to its end where that comes first."""
    return _persistently(uri, lambda system, path: system.cat_file(path, start=start, end=stop))


def delete(uri: str) -> None:
    """Remove a file; raises FileNotFoundError where the storage says that there is none."""
    _persistently(uri, lambda system, path: system.rm_file(path))


def names(folder: str) -> list[str]:
    """Return the names of the files directly inside a folder; none where there is no folder."""
    try:
        entries = _persistently(folder, lambda system, path: system.ls(path, detail=True))
    except FileNotFoundError:
        return []
    return [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]
