"""Decides where a file may be written: in the folder that a person asked for, under its own name, never through a link out of it.

Somebody else's dataset, and the folder that one stands in, may hold links. One `data -> /etc` in a dataset would have a repair
delete and write in the home folder.
"""

import os
import secrets
import stat
from pathlib import Path, PurePosixPath

from promptmill.shards.storage import SCRATCH, OddFileError, StorageError, is_local, join, kind_of, local_path

# The folders that a dataset has.
FOLDERS = ("data", "metadata", "commits", "parts", "plan", "plan/shards", "plan/earlier", "stats", "lease", "rewritten/parts")

STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


class OutsideError(StorageError):
    """Reports a place outside of the folder that was asked for; the message is one line that begins with the place."""


def place_in(folder: str, name: str) -> str:
    """Return the URI where a file may be written.

    Args:
        folder: The folder that a person asked for, a path or a URI, which may itself be a link.
        name: The file's name, from the folder, with `/` between its parts.

    Raises:
        OutsideError: The name is no plain relative path, or a link on the way to it leads out of the folder. The last part may be a
            link, which whoever writes replaces.
    """
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in name:
        raise OutsideError(f"{folder}: {name!r:.200} is no name of a file in it")
    place = join(folder, name)
    if is_local(folder):
        root, parent = local_path(folder).resolve(), local_path(place).parent
        if not _leads(parent).is_relative_to(root):
            raise OutsideError(f"{parent}: leads out of {folder}; nothing is written through a link")
    return place


def _leads(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError):  # links in a circle
        raise OutsideError(f"{folder}: is a link that leads nowhere") from None


def check_folders(output: str) -> None:
    """Raise where a folder of a local output is a link that leads out of it: a command would write and delete elsewhere.

    Raises:
        OutsideError: A folder of the output is such a link.
    """
    for folder in FOLDERS:
        place_in(output, f"{folder}/any")


def own_file(output: str, path: str) -> str:
    """Return the URI of a file of an output that is handed on to others, unless it is a link or lies behind one.

    Args:
        output: The dataset's URI.
        path: The file's path from the output.

    Raises:
        FileNotFoundError: The file is not there.
        OddFileError: A part of the path is a link, or the file is no regular one.
        OutsideError: The path is no plain relative one.
    """
    place = place_in(output, path)
    if is_local(output):
        parents = PurePosixPath(path).parents
        for part in [*(str(parent) for parent in parents if str(parent) != "."), path]:
            mode = os.lstat(local_path(join(output, part))).st_mode
            if stat.S_ISLNK(mode):
                raise OddFileError(join(output, part), "is a link, which may lead anywhere; put the file itself there")
            if part == path and not stat.S_ISREG(mode):
                raise OddFileError(place, f"is a {kind_of(mode)}, not a regular file")
    return place


def write_file(file: Path, content: bytes) -> None:
    """Write a file that a person asked for, whole or not at all.

    A link of this name is replaced, and what it led to stays as it was. A device or a pipe that is there under the name is written
    into, and so is what /dev/stdout, /dev/stderr or /dev/fd/N leads to.

    Raises:
        OutsideError: The path has no name of a file.
        OSError: The file cannot be written.
    """
    place = local_path(place_in(str(file.parent), file.name))
    if (own := _descriptor(place)) is not None:
        # Where a shell leads /dev/stdout to a file, the name is still a link of the whole machine: it must not be replaced.
        with os.fdopen(os.dup(own), "wb") as stream:
            stream.write(content)
        return
    if _is_stream(place):
        # Without a reader, opening a FIFO would wait without end.
        handle = os.open(place, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(handle, True)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        return
    scratch = place.parent / f"{SCRATCH}{secrets.token_hex(8)}"
    try:
        with scratch.open("xb") as stream:
            stream.write(content)
        scratch.replace(place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        scratch.unlink(missing_ok=True)


def _descriptor(place: Path) -> int | None:
    """Return the number of the open file of this process that a path names, or None where the path names none."""
    if str(place) in STREAMS:
        return STREAMS[str(place)]
    return int(place.name) if str(place.parent) in ("/dev/fd", "/proc/self/fd") and place.name.isdecimal() else None


def _is_stream(place: Path) -> bool:
    try:
        mode = place.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)
