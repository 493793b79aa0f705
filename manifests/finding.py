"""Finds the files of a manifest by a path that exists or a pattern; an error names the nearest file."""

import difflib
import functools
import glob
import itertools
import os
import re
import stat
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from promptmill.configs.errors import shown
from promptmill.manifests.files import is_local, system_of
from promptmill.manifests.roots import LOCAL, nearest_path
from promptmill.manifests.rows import ManifestError

MAGIC = "*?["
MOST_NAMES = 1000  # of a folder that are compared with a name that is not there
# Directories named by Hive's rule; Spark, Polars, DuckDB and pyarrow write and read them.
_PARTITION = re.compile(r"([A-Za-z_][\w.-]*)=(.*)")
_NULL = "__HIVE_DEFAULT_PARTITION__"


def find(pattern: str) -> list[str]:
    """Return the files that a path or a pattern names, those of a pattern sorted by name; a path that exists is that file.

    Raises:
        ManifestError: No file matches; the message says what was looked for, and which file is nearest.
    """
    plain = pattern
    for scheme in LOCAL:
        if pattern.lower().startswith(scheme):
            plain = pattern[len(scheme) :].removeprefix("localhost")
    if "://" in plain:
        return _find_remote(pattern)
    try:
        mode = Path(plain).stat().st_mode
    except (OSError, ValueError):  # a name that is too long, or has a NUL character, is a file nowhere
        mode = 0
    if stat.S_ISREG(mode):
        return [_absolute(plain)]
    if stat.S_ISDIR(mode):
        raise ManifestError(f"{pattern}: is a folder; name its files, as in {pattern.rstrip('/')}/*.jsonl")
    if mode:
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise ManifestError(f"{pattern}: is {kind}, which gives its rows once, while a manifest is read again; write it to a file")
    found = []
    if any(character in plain for character in MAGIC) and "\0" not in plain:
        # Path.glob takes brackets of the folder that one stands in for a pattern too.
        found = _without_marks([name for name in sorted(glob.glob(plain, recursive=True)) if os.path.isfile(name)])  # noqa: PTH113, PTH207
    if not found:
        raise ManifestError(f"{shown(pattern, 1000)}: no such file{_looked(plain)}")
    return [_absolute(name) for name in found]


def _find_remote(pattern: str) -> list[str]:
    try:
        system, path = system_of(pattern)
        there = path if system.isfile(path) else None
        if there is None and system.isdir(path):
            raise ManifestError(f"{pattern}: is a folder; name its files, as in {pattern.rstrip('/')}/*.jsonl")
        if there is None and any(character in path for character in MAGIC):
            # One listing gives the type of every entry.
            listed = system.glob(path, detail=True)
            found = _without_marks(sorted(name for name, facts in listed.items() if facts["type"] == "file"))
        else:
            found = [there] if there is not None else []
    except ManifestError:
        raise
    except Exception as error:  # the errors of storages, for missing credentials for example, have no common base
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise ManifestError(f"{pattern}: cannot be reached: {shown(reason.splitlines()[0], 300)}") from None
    if not found:
        raise ManifestError(f"{pattern}: no such file")
    return [name if is_local(system) else system.unstrip_protocol(name) for name in found]


def _without_marks(files: list[str]) -> list[str]:
    """Return the files without those that Spark and others leave beside parts: _SUCCESS, _metadata, dot files with checksums."""
    return [name for name in files if (last := name.rpartition("/")[2])[:1] != "_" or "." in last]


def _absolute(path: str) -> str:
    """Return a path from the root of this machine; links are kept, and `..` behind a link is resolved as the system resolves it."""
    plain = os.path.abspath(path)  # noqa: PTH100 (resolve would follow links)
    if ".." in PurePosixPath(path).parts and not (Path(plain).exists() and Path(plain).samefile(path)):
        return str(Path(path).resolve())
    return plain


def _looked(path: str) -> str:
    """Return the end of an error message: where a path was looked for, and which file is nearest."""
    try:
        place = Path(path)
        if place.is_symlink():
            return f"; it is a link to {shown(str(place.readlink()), 300)}, which is not there"
        where = "" if place.is_absolute() else f" in {shown(str(Path.cwd()), 300)}"
        near = nearest_path(str(place.anchor or Path.cwd()), str(place.relative_to(place.anchor)))
        if near is not None:
            return f"{where}; {shown(str(Path(place.anchor, near)))!r} lies there"
        folder = place.parent
        if not folder.is_dir():
            return f"{where}; there is no folder {shown(str(folder))!r}"
        with os.scandir(folder) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MOST_NAMES), strict=False)]
        close = difflib.get_close_matches(place.name, sorted(names), n=1, cutoff=0.6)
        return f"{where}; did you mean {shown(str(folder / close[0]))!r}?" if close else where
    except (OSError, ValueError):
        return ""


def partitions(file: str) -> dict[str, str]:
    """Return the columns that the names of a file's folders give to its rows, as topic=pets/2024=x/a.parquet does.

    Only the folders directly above the file count, up to the first folder whose name is no partition. Values are text.
    """
    return _partitions(file.rpartition("/")[0])


@functools.lru_cache(1024)
def _partitions(folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in partition_folders(folder):
        name, _, value = part.partition("=")
        if value != _NULL:
            found[unquote(name)] = unquote(value)
    return found


def partition_folders(folder: str) -> list[str]:
    """Return the folder names at the end of a path that are partitions, in their order."""
    named = itertools.takewhile(_PARTITION.fullmatch, reversed(folder.split("/")))
    return list(named)[::-1]
