"""Puts files where they belong, on a local disk or any remote storage: whole or not at all, and never over another.

Local files, object stores and the other storages that fsspec knows have a module each: `local_files`, `object_stores`,
`other_storages`. Here a URI is led to its own, and whatever fails becomes one line. What a remote storage fails at for a passing
reason is tried again.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

from promptmill.shards import local_files, object_stores, other_storages
from promptmill.shards.credentials import without_credentials
from promptmill.shards.local_files import (
    FLUSHES,
    SCRATCH,
    check_stays,
    flush_files,
    is_local,
    kind_of,
    local_path,
    open_regular,
    staying,
    sweep_scratch,
)
from promptmill.shards.storage_errors import FolderGoneError, OddFileError, StorageError, TooLargeError, naming

__all__ = [
    "FLUSHES",
    "SCRATCH",
    "FolderGoneError",
    "OddFileError",
    "StorageError",
    "TooLargeError",
    "check_stays",
    "check_uri",
    "delete",
    "flush_files",
    "get",
    "get_range",
    "is_local",
    "join",
    "kind_of",
    "local_path",
    "names",
    "open_regular",
    "put",
    "put_if_absent",
    "put_unflushed",
    "staying",
    "sweep_scratch",
]


class _Remote(Protocol):
    """What each module of remote storages has."""

    def put(self, uri: str, content: bytes) -> None: ...
    def put_if_absent(self, uri: str, content: bytes) -> bool: ...
    def get(self, uri: str, most: int | None) -> bytes: ...
    def get_range(self, uri: str, start: int, stop: int) -> bytes: ...
    def delete(self, uri: str) -> None: ...
    def names(self, folder: str) -> list[str]: ...


def _remote(uri: str) -> _Remote:
    return object_stores if object_stores.serves(uri) else other_storages


def check_uri(uri: str) -> None:
    """Refuse a URI that carries credentials: it would be written into logs, plans and records.

    Raises:
        StorageError: It does; the message does not.
    """
    if not is_local(uri) and (hidden := without_credentials(uri)) != uri:
        raise StorageError(
            f"{hidden}: a URI must not carry credentials, which would be written into logs and records; "
            "set them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or in the storage's own configuration"
        )


def join(folder: str, *names: str) -> str:
    """Return the URI of something inside a folder."""
    return "/".join([folder.rstrip("/"), *names])


def put(uri: str, content: bytes) -> None:
    """Write a file, replacing the one that is there. A reader sees the old one or the new one, never a part.

    Raises:
        StorageError: It cannot be written.
    """
    with naming(uri):
        if is_local(uri):
            local_files.put(local_path(uri), content)
        else:
            _remote(uri).put(uri, content)


def put_unflushed(uri: str, content: bytes) -> None:
    """Write a file as `put` does, but on a local disk without waiting for the disk.

    A power cut may leave an empty file, a part or none, until `flush_files` has returned for this one.

    Raises:
        StorageError: It cannot be written.
    """
    if not is_local(uri):
        put(uri, content)
        return
    with naming(uri):
        local_files.put(local_path(uri), content, flush=False)


def put_if_absent(uri: str, content: bytes) -> bool:
    """Write a file unless there is one; of many who try at once with different contents, exactly one succeeds.

    An answer can be lost after the file was written, and the next try then finds it there. So on a remote storage a file with
    exactly this content counts as written by us, whoever wrote it: a claim must hold something only its claimant writes.

    Returns:
        Whether it was written. If not, what is there is untouched: read it to see whether it is the same.

    Raises:
        StorageError: It cannot be written.
    """
    with naming(uri):
        if is_local(uri):
            return local_files.put_if_absent(local_path(uri), content)
        if _remote(uri).put_if_absent(uri, content):
            return True
        try:
            return get(uri, len(content)) == content
        except (FileNotFoundError, TooLargeError):
            return False  # it is another's, or was and is gone again


def get(uri: str, most: int | None = None) -> bytes:
    """Return a file's content.

    Args:
        uri: Of the file.
        most: Bytes; a larger file is not read, whatever lies there.

    Raises:
        FileNotFoundError: It is not there.
        TooLargeError: It is larger than `most`.
        OddFileError: It is a device, a FIFO, a socket or a folder.
        StorageError: It cannot be read.
    """
    with naming(uri, absence=True):
        return local_files.get(uri, most) if is_local(uri) else _remote(uri).get(uri, most)


def get_range(uri: str, start: int, stop: int) -> bytes:
    """Return a file's bytes from `start` up to `stop`, or to its end where that comes first.

    Two ranges may be of two versions of the file.

    Raises:
        FileNotFoundError: It is not there.
        OddFileError: It is a device, a FIFO, a socket or a folder.
        StorageError: It cannot be read, or ends before `start` on a storage that calls this an error.
    """
    with naming(uri, absence=True):
        return local_files.get_range(uri, start, stop) if is_local(uri) else _remote(uri).get_range(uri, start, stop)


def delete(uri: str) -> None:
    """Remove a file; one that is gone already is no error.

    Raises:
        StorageError: It cannot be removed.
    """
    with naming(uri):
        if is_local(uri):
            local_path(uri).unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            _remote(uri).delete(uri)


def names(folder: str) -> Iterator[str]:
    """Yield the names of the whole files directly inside a folder, sorted; none where there is no folder.

    Raises:
        StorageError: It cannot be listed.
    """
    with naming(folder):
        found = local_files.names(local_path(folder)) if is_local(folder) else _remote(folder).names(folder)
    yield from sorted(name for name in found if not name.startswith(SCRATCH))
