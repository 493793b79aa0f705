"""Puts files where they belong, on a local disk or any fsspec storage: whole or not at all, and never over another.

Locally a file is written beside its place, flushed to the disk and hard-linked (or renamed) into it. On S3 a put is whole by
itself, and conditional where it must not replace. What a remote storage fails at for a passing reason is tried again.
"""

import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

import fsspec
from fsspec.asyn import AsyncFileSystem

from promptmill.shards.credentials import without_credentials
from promptmill.shards.retries import GaveUpError, Result, answer_code, origins, persistently

CONNECT_TIMEOUT = 5.0  # seconds until S3 took a connection
READ_TIMEOUT = 20.0  # seconds without a byte of an answer from S3
REQUEST_TRIES = 3  # of each request, by the S3 client itself, which pauses with jitter: a long listing is not begun anew
# The client bounds the wait for an answer, not the sending: a server that stops reading would hold an upload forever.
UPLOAD_TIMEOUT = 60.0  # seconds for any upload, and those that its bytes take at
SLOWEST_UPLOAD = 100_000  # bytes per second

KINDS = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
FLUSHES = 16  # files that are flushed to a local disk at once, where there are many

SCRATCH = ".tmp-"  # what half-written files begin with; nobody reads them, and they may be deleted at any time


class StorageError(OSError):
    """A storage that is not there, refuses or fails; the message is one line that begins with the URI."""


class FolderGoneError(StorageError):
    """A folder that is not there any more, though it was when the writing began."""


class TooLargeError(ValueError):
    """A file with more bytes than any of its kind has."""


class OddFileError(StorageError):
    """A file that is not opened: a special file, or one larger than it may be.

    Attributes:
        said: The reason, without the URI.
        size: In bytes, of a file that is too large.
    """

    def __init__(self, uri: str, said: str, size: int | None = None):
        self.said, self.size = said, size
        super().__init__(f"{without_credentials(uri)}: {said}")


@contextmanager
def _naming(uri: str, absence: bool = False) -> Iterator[None]:
    """Whatever goes wrong inside becomes a StorageError; with `absence`, a file that is not there stays FileNotFoundError."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # each storage's client has errors of its own, and few of them are OSErrors
        if absence and isinstance(error, FileNotFoundError):
            raise
        raise StorageError(f"{without_credentials(uri)}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, GaveUpError) and error.__cause__ is not None:
        return f"{_reason(error.__cause__)} ({error})"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # Hidden before it is cut: half a secret is no longer found, and still too much.
    return " ".join(without_credentials(words).split())[:500] or type(error).__name__


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


def is_local(uri: str) -> bool:
    """Whether a URI is a path of this machine's file system."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def local_path(uri: str) -> Path:
    """Where a local URI points, `~` expanded."""
    # Unlike Path's, this one leaves the home of a user who is not there as it stands.
    return Path(os.path.expanduser(uri.removeprefix("file://").removeprefix("local://")))  # noqa: PTH111


def _is_s3(uri: str) -> bool:
    return uri.startswith(("s3://", "s3a://"))


def _system(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if not _is_s3(uri):
        return fsspec.core.url_to_fs(uri)
    said = {**fsspec.config.conf.get("s3", {}), **fsspec.config.conf.get("s3a", {})}.get("config_kwargs", {})
    ours = {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
        "retries": {"mode": "standard", "total_max_attempts": REQUEST_TRIES},
    }
    # A kept listing would hide what others wrote meanwhile.
    system, path = fsspec.core.url_to_fs(uri, use_listings_cache=False, config_kwargs={**ours, **said})
    system.retries = 1  # s3fs's own tries would only multiply the client's and ours
    return system, path


def _remotely(uri: str, action: Callable[[fsspec.AbstractFileSystem, str], Result]) -> Result:
    """What an idempotent action on a remote storage and a path in it returns, tried again while it may help."""
    system, path = _system(uri)

    def once() -> Result:
        system.invalidate_cache()
        return action(system, path)

    return persistently(once)


def _upload_limit(system: fsspec.AbstractFileSystem, content: bytes) -> dict[str, float]:
    return {"timeout": UPLOAD_TIMEOUT + len(content) / SLOWEST_UPLOAD} if isinstance(system, AsyncFileSystem) else {}


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
            _remotely(uri, lambda system, path: system.pipe_file(path, content, **_upload_limit(system, content)))
            return
        place = local_path(uri)
        scratch = _written_beside(place, content)
        scratch.replace(place)
        _flush(place.parent)


def put_unflushed(uri: str, content: bytes) -> None:
    """Write a file as `put` does, but on a local disk without waiting for the disk.

    A power cut may leave an empty file, a part or none, until `flush_files` has returned for this one.

    Raises:
        StorageError: It cannot be written.
    """
    if not is_local(uri):
        put(uri, content)
        return
    with _naming(uri):
        place = local_path(uri)
        _written_beside(place, content, flush=False).replace(place)


def flush_files(uris: Iterable[str]) -> None:
    """Make files durable that `put_unflushed` has written, many at a time: a disk that is asked by many answers all at once.

    Args:
        uris: Read as they are needed; there may be millions. On a remote storage there is nothing to do.

    Raises:
        StorageError: One is not there, or cannot be written to the disk.
    """
    left, lock, folders = iter(uris), threading.Lock(), set[Path]()

    def flush_some() -> None:
        while True:
            with lock:
                uri = next(left, None)
            if uri is None:
                return
            if is_local(uri):
                with _naming(uri):
                    place = local_path(uri)
                    _flush(place)
                    folders.add(place.parent)

    with ThreadPoolExecutor(FLUSHES, "flush") as threads:
        for flushed in [threads.submit(flush_some) for _ in range(FLUSHES)]:
            flushed.result()
    for folder in folders:
        with _naming(str(folder)):
            _flush(folder)


def put_if_absent(uri: str, content: bytes) -> bool:
    """Write a file unless there is one; of many who try at once with different contents, exactly one succeeds.

    An answer can be lost after the file was written, and the next try then finds it there. So on a remote storage a file with
    exactly this content counts as written by us, whoever wrote it: a claim must hold something only its claimant writes.

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
        # Over NFS it also fails when the answer to one that succeeded was lost; the count of links tells.
        if scratch.stat().st_nlink < 2:
            return False
    finally:
        scratch.unlink(missing_ok=True)
    _flush(place.parent)
    return True


def _put_remote_if_absent(uri: str, content: bytes) -> bool:
    if _remotely(uri, lambda system, path: _created(system, path, content)):
        return True
    try:
        return get(uri) == content
    except FileNotFoundError:
        return False  # it was another's, and is gone again


def _created(system: fsspec.AbstractFileSystem, path: str, content: bytes) -> bool:
    try:
        # s3fs sends If-None-Match; other stores take fsspec's exclusive mode or say that they cannot.
        system.pipe_file(path, content, mode="create", **_upload_limit(system, content))
    except FileExistsError:
        return False
    except Exception as error:
        if _is_precondition_failure(error):
            return False
        raise
    return True


def _is_precondition_failure(error: BaseException) -> bool:
    """Whether S3 answered 412 to a conditional put, however deep the client wrapped it."""
    return (
        any(
            answer_code(each) in ("PreconditionFailed", "412") or getattr(each, "errno", 0) == errno.EEXIST
            for each in origins(error)
        )
        or "PreconditionFailed" in str(error)
        or "pre-conditions" in str(error)
    )


def _written_beside(place: Path, content: bytes, flush: bool = True) -> Path:
    _make_folders(place.parent)
    scratch = place.parent / f"{SCRATCH}{secrets.token_hex(8)}"
    try:
        with scratch.open("xb") as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return scratch


_staying: list[Path] = []  # folders that this process, in any of its threads, does not make anew


@contextmanager
def staying(folder: str) -> Iterator[None]:
    """Inside, write no file into a folder that has gone: whoever moved or deleted it finds nothing new at its old place.

    Holds for all threads of this process, and for local folders: a remote storage has none. What is written there raises
    FolderGoneError then.

    Args:
        folder: Its URI; it is there already.
    """
    if not is_local(folder):
        yield
        return
    _staying.append(local_path(folder))
    try:
        yield
    finally:
        _staying.remove(local_path(folder))


def check_stays(folder: str) -> None:
    """Raise FolderGoneError where a local folder that files were written into is not there any more."""
    if is_local(folder) and not local_path(folder).is_dir():
        again = "what was moved goes on with its new place as --out"
        raise FolderGoneError(f"{folder}: is gone: it was moved or deleted in mid-run; {again}")


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, but none that stays, nor what lies above that one."""
    root = next((root for root in [*_staying] if folder.is_relative_to(root)), None)
    if root is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    try:
        above = root
        for name in folder.relative_to(root).parts:
            above /= name
            above.mkdir(exist_ok=True)
    except FileNotFoundError:
        check_stays(str(root))
        raise


def _flush(place: Path) -> None:
    """Make a file or the names in a folder durable; a file's own flush does not make its name so."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def get(uri: str, most: int | None = None) -> bytes:
    """Return a file's content.

    Args:
        most: Bytes; a larger file is not read.

    Raises:
        FileNotFoundError: It is not there.
        OddFileError: It is larger than `most`, or it is a device, a FIFO, a socket or a folder.
        StorageError: It cannot be read.
    """
    with _naming(uri, absence=True):
        if is_local(uri):
            with open_regular(uri) as file:
                if most is not None:
                    _check_size(uri, os.fstat(file.fileno()).st_size, most)
                return file.read()
        # One request for the whole: ranges that several requests fetch may be of two versions of the file.
        whole = {"max_concurrency": 1} if _is_s3(uri) else {}
        if most is not None:
            _check_size(uri, int(_remotely(uri, lambda system, path: system.size(path)) or 0), most)
        return _remotely(uri, lambda system, path: system.cat_file(path, **whole))


def get_small(uri: str, most: int) -> bytes:
    """Read a file that is small by what it is, and not a byte more than it may have, whatever lies there.

    Args:
        uri: Of the file.
        most: Bytes that it may have.

    Raises:
        FileNotFoundError: It is not there.
        TooLargeError: It has more.
        StorageError: It cannot be read, or is no file but a device or a pipe, which may never end.
    """
    try:
        content = get_range(uri, 0, most + 1)
    except StorageError:
        if is_local(uri):
            raise
        content = get(uri)  # of an empty file, some storages refuse every range
    if len(content) > most:
        raise TooLargeError(f"has more than {most:,} bytes")
    return content


def get_range(uri: str, start: int, stop: int) -> bytes:
    """Return a file's bytes from `start` up to `stop`, or to its end where that comes first.

    Two ranges may be of two versions of the file.

    Raises:
        FileNotFoundError: It is not there.
        OddFileError: It is a device, a FIFO, a socket or a folder.
        StorageError: It cannot be read, or ends before `start` on a storage that calls this an error.
    """
    with _naming(uri, absence=True):
        if is_local(uri):
            with open_regular(uri) as file:
                # Asked for more than there is, `read` would set memory aside for all of it.
                stop = min(stop, os.fstat(file.fileno()).st_size)
                file.seek(min(start, stop))
                return file.read(max(0, stop - start))
        whole = {"max_concurrency": 1} if _is_s3(uri) else {}
        return _remotely(uri, lambda system, path: system.cat_file(path, start=start, end=stop, **whole))


def _check_size(uri: str, size: int, most: int) -> None:
    if size > most:
        raise OddFileError(uri, f"is of {size:,} bytes, more than the {most:,} that it may have", size)


def open_regular(uri: str) -> BufferedReader:
    """Open a local file for reading, links followed, unless it is a special file: a FIFO would be waited for without end.

    Raises:
        FileNotFoundError: It is not there.
        OddFileError: It is a device, a FIFO, a socket or a folder.
        OSError: It cannot be opened.
    """
    place = local_path(uri)
    # Looked at before it is opened, since opening a device may do something, and after it, since it may be another by then.
    _check_regular(uri, place.stat().st_mode)
    handle = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(uri, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_regular(uri: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OddFileError(uri, f"is a {kind_of(mode)}, not a regular file")


def kind_of(mode: int) -> str:
    """Return the word for what a file is, by its `st_mode`."""
    return KINDS.get(stat.S_IFMT(mode), "special file")


def delete(uri: str) -> None:
    """Remove a file; one that is gone already is no error.

    Raises:
        StorageError: It cannot be removed.
    """
    with _naming(uri):
        if is_local(uri):
            local_path(uri).unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            _remotely(uri, lambda system, path: system.rm_file(path))


def names(folder: str) -> Iterator[str]:
    """The names of the whole files directly inside a folder, sorted; none where there is no folder.

    Raises:
        StorageError: It cannot be listed.
    """
    with _naming(folder):
        found = _names(folder)
    yield from sorted(name for name in found if not name.startswith(SCRATCH))


def sweep_scratch(folder: str) -> None:
    """Remove the half-written files that killed writers have left in a local folder; elsewhere there are none.

    Raises:
        StorageError: One cannot be removed.
    """
    if is_local(folder) and local_path(folder).is_dir():
        with _naming(folder):
            for scratch in local_path(folder).glob(f"{SCRATCH}*"):
                scratch.unlink(missing_ok=True)


def _names(folder: str) -> list[str]:
    if is_local(folder):
        place = local_path(folder)
        return [entry.name for entry in os.scandir(place) if entry.is_file()] if place.is_dir() else []
    try:
        entries = _remotely(folder, lambda system, path: system.ls(path, detail=True))
    except FileNotFoundError:
        return []
    return [entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]
