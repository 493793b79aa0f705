"""Puts files where they belong, on a local disk or any fsspec storage: whole or not at all, and never over another.

Locally a file is written beside its place, flushed to the disk and hard-linked (or renamed) into it. On S3 a put is whole by
itself, and conditional where it must not replace.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

SCRATCH = ".tmp-"  # what half-written files begin with; nobody reads them, and they may be deleted at any time


class StorageError(OSError):
    """A storage that is not there, refuses or fails; the message is one line that begins with the URI."""


@contextmanager
def _naming(uri: str, absence: bool = False) -> Iterator[None]:
    """Whatever goes wrong inside becomes a StorageError; with `absence`, a file that is not there stays FileNotFoundError."""
    try:
        yield
    except Exception as error:  # each storage's client has errors of its own, and few of them are OSErrors
        if absence and isinstance(error, FileNotFoundError):
            raise
        raise StorageError(f"{uri}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:500] or type(error).__name__


def is_local(uri: str) -> bool:
    """Whether a URI is a path of this machine's file system."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def local_path(uri: str) -> Path:
    """Where a local URI points, `~` expanded."""
    # Unlike Path's, this one leaves the home of a user who is not there as it stands.
    return Path(os.path.expanduser(uri.removeprefix("file://").removeprefix("local://")))  # noqa: PTH111


def _system(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    return fsspec.core.url_to_fs(uri)


def join(folder: str, *names: str) -> str:
    """The URI of something inside a folder."""
    return "/".join([folder.rstrip("/"), *names])


def put(uri: str, content: bytes) -> None:
    """Write a file, replacing the one that is there. A reader sees the old one or the new one, never a part.

    Raises:
        StorageError: It cannot be written.
    """
    with _naming(uri):
        if not is_local(uri):
            system, path = _system(uri)
            system.pipe_file(path, content)
            return
        place = local_path(uri)
        scratch = _written_beside(place, content)
        scratch.replace(place)
        _flush_folder(place.parent)


def put_if_absent(uri: str, content: bytes) -> bool:
    """Write a file unless there is one; of many who try at once, exactly one succeeds.

    Returns:
        Whether it was written. If not, what is there is untouched: read it to see whether it is the same.

    Raises:
        StorageError: It cannot be written.
    """
    with _naming(uri):
        return _put_local_if_absent(local_path(uri), content) if is_local(uri) else _put_remote_if_absent(uri, content)


def _put_local_if_absent(place: Path, content: bytes) -> bool:
    scratch = _written_beside(place, content)
    try:
        # A hard link fails where the name exists, on every file system that has links, over NFS too.
        os.link(scratch, place)
    except FileExistsError:
        return False
    finally:
        scratch.unlink(missing_ok=True)
    _flush_folder(place.parent)
    return True


def _put_remote_if_absent(uri: str, content: bytes) -> bool:
    system, path = _system(uri)
    try:
        # s3fs sends If-None-Match; other stores take fsspec's exclusive mode or say that they cannot.
        system.pipe_file(path, content, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno == errno.EEXIST or _is_precondition_failure(error):
            return False
        raise
    return True


def _is_precondition_failure(error: BaseException) -> bool:
    """Whether S3 answered 412 or 409 to a conditional put, however deep the client wrapped it."""
    seen: BaseException | None = error
    while seen is not None:
        response: Any = getattr(seen, "response", None)
        if isinstance(response, dict) and response.get("Error", {}).get("Code") in (
            "PreconditionFailed",
            "ConditionalRequestConflict",
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return "PreconditionFailed" in str(error) or "pre-conditions" in str(error)


def _written_beside(place: Path, content: bytes) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.parent / f"{SCRATCH}{secrets.token_hex(8)}"
    try:
        with scratch.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return scratch


def _flush_folder(folder: Path) -> None:
    """Make the new name itself durable; a file's own flush does not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def get(uri: str) -> bytes:
    """A file's content.

    Raises:
        FileNotFoundError: It is not there.
        StorageError: It cannot be read.
    """
    with _naming(uri, absence=True):
        if is_local(uri):
            return local_path(uri).read_bytes()
        system, path = _system(uri)
        system.invalidate_cache()
        return system.cat_file(path)


def delete(uri: str) -> None:
    """Remove a file; one that is gone already is no error.

    Raises:
        StorageError: It cannot be removed.
    """
    with _naming(uri):
        if is_local(uri):
            local_path(uri).unlink(missing_ok=True)
            return
        system, path = _system(uri)
        system.invalidate_cache()
        if system.exists(path):
            system.rm_file(path)


def names(folder: str) -> Iterator[str]:
    """The names of the whole files directly inside a folder, sorted; none where there is no folder.

    Raises:
        StorageError: It cannot be listed.
    """
    with _naming(folder):
        found = _names(folder)
    yield from sorted(name for name in found if not name.startswith(SCRATCH))


def _names(folder: str) -> list[str]:
    if is_local(folder):
        place = local_path(folder)
        return [entry.name for entry in os.scandir(place) if entry.is_file()] if place.is_dir() else []
    system, path = _system(folder)
    system.invalidate_cache()
    try:
        return [entry["name"].rsplit("/", 1)[-1] for entry in system.ls(path, detail=True) if entry["type"] == "file"]
    except FileNotFoundError:
        return []
