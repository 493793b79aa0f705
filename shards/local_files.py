"""Reads and writes files of this machine's file systems: whole or not at all, durable where wanted, never a special file.

A file is written beside its place, flushed to the disk and hard-linked (or renamed) into it.
"""

import os
import secrets
import stat
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from promptmill.shards.storage_errors import FolderGoneError, OddFileError, check_size, naming

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


def is_local(uri: str) -> bool:
    """Whether a URI is a path of this machine's file system."""
    return "://" not in uri or uri.startswith(("file://", "local://"))


def local_path(uri: str) -> Path:
    """Where a local URI points, `~` expanded."""
    # Unlike Path's, this one leaves the home of a user who is not there as it stands.
    return Path(os.path.expanduser(uri.removeprefix("file://").removeprefix("local://")))  # noqa: PTH111


def put(place: Path, content: bytes, flush: bool = True) -> None:
    """Write a file, replacing the one that is there; `flush`: it and its name survive a power cut."""
    scratch = _written_beside(place, content, flush)
    scratch.replace(place)
    if flush:
        _flush(place.parent)


def put_if_absent(place: Path, content: bytes) -> bool:
    """Write a file unless there is one; returns whether it was written."""
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
                with naming(uri):
                    place = local_path(uri)
                    _flush(place)
                    folders.add(place.parent)

    with ThreadPoolExecutor(FLUSHES, "flush") as threads:
        for flushed in [threads.submit(flush_some) for _ in range(FLUSHES)]:
            flushed.result()
    for folder in folders:
        with naming(str(folder)):
            _flush(folder)


def get(uri: str, most: int | None) -> bytes:
    """Return a file's content; one of more than `most` bytes is not read, None for any size."""
    with open_regular(uri) as file:
        if most is None:
            return file.read()
        size = os.fstat(file.fileno()).st_size
        check_size(uri, size, most)
        return file.read(size)  # and not what is added meanwhile


def get_range(uri: str, start: int, stop: int) -> bytes:
    """Return a file's bytes from `start` up to `stop`, or to its end where that comes first."""
    with open_regular(uri) as file:
        # Asked for more than there is, `read` would set memory aside for all of it.
        stop = min(stop, os.fstat(file.fileno()).st_size)
        file.seek(min(start, stop))
        return file.read(max(0, stop - start))


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


def names(place: Path) -> list[str]:
    """Return the names of the files directly inside a folder, half-written ones included; none where there is no folder."""
    return [entry.name for entry in os.scandir(place) if entry.is_file()] if place.is_dir() else []


def sweep_scratch(folder: str) -> None:
    """Remove the half-written files that killed writers have left in a local folder; elsewhere there are none.

    Raises:
        StorageError: One cannot be removed.
    """
    if is_local(folder) and local_path(folder).is_dir():
        with naming(folder):
            for scratch in local_path(folder).glob(f"{SCRATCH}*"):
                scratch.unlink(missing_ok=True)
