"""Puts files where they belong, on a local disk or any fsspec storage: whole or not at all, and never over another.

Locally a file is written beside its place, flushed to the disk and hard-linked (or renamed) into it. On S3 a put is whole by
itself, and conditional where it must not replace.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

SCRATCH = ".tmp-"  # what half-written files begin with; nobody reads them, and they may be deleted at any time


def is_local(uri: str) -> bool:
    """Whether a URI is a path of this machine's file system."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://").removeprefix("local://"))


def _system(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    return fsspec.core.url_to_fs(uri)


def join(folder: str, *names: str) -> str:
    """The URI of something inside a folder."""
    return "/".join([folder.rstrip("/"), *names])


def put(uri: str, content: bytes) -> None:
    """Write a file, replacing the one that is there. A reader sees the old one or the new one, never a part."""
    if not is_local(uri):
        system, path = _system(uri)
        system.pipe_file(path, content)
        return
    place = _local(uri)
    scratch = _written_beside(place, content)
    scratch.replace(place)
    _flush_folder(place.parent)


def put_if_absent(uri: str, content: bytes) -> bool:
    """Write a file unless there is one; of many who try at once, exactly one succeeds.

    Returns:
        Whether it was written. If not, what is there is untouched: read it to see whether it is the same.
    """
    if not is_local(uri):
        return _put_remote_if_absent(uri, content)
    place = _local(uri)
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
    """
    if is_local(uri):
        return _local(uri).read_bytes()
    system, path = _system(uri)
    system.invalidate_cache()
    return system.cat_file(path)


def delete(uri: str) -> None:
    """Remove a file; one that is gone already is no error."""
    if is_local(uri):
        _local(uri).unlink(missing_ok=True)
        return
    system, path = _system(uri)
    system.invalidate_cache()
    if system.exists(path):
        system.rm_file(path)


def names(folder: str) -> Iterator[str]:
    """The names of the whole files directly inside a folder, sorted; none where there is no folder."""
    if is_local(folder):
        place = _local(folder)
        found = [entry.name for entry in os.scandir(place) if entry.is_file()] if place.is_dir() else []
    else:
        system, path = _system(folder)
        system.invalidate_cache()
        try:
            found = [entry["name"].rsplit("/", 1)[-1] for entry in system.ls(path, detail=True) if entry["type"] == "file"]
        except FileNotFoundError:
            found = []
    yield from sorted(name for name in found if not name.startswith(SCRATCH))
