"""Finds the lines that a wildcard of a template stands for: those of a text file, or of all files that a glob names."""

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

from promptmill.configs.errors import nearest, quoted, shown
from promptmill.manifests.line_files import read_lines
from promptmill.manifests.rows import ManifestError

ENDING = ".txt"
MOST_FILES = 20_000
MOST_STARS = 8  # of a glob; more would be read slowly
MOST_IDENTITY = 2**30  # bytes of all files


class WildcardError(ValueError):
    """Reports a wildcard that stands for no line; the message is one line."""


class Line(str):
    """Holds one line of a wildcard's file, with the place that messages name.

    Attributes:
        place: The file's name in the folder of wildcards, and the line's number.
    """

    __slots__ = ("place",)
    place: str

    def __new__(cls, text: str, place: str) -> "Line":
        self = super().__new__(cls, text)
        self.place = place
        return self


def lines_of(folder: str | None, name: str) -> tuple[Line, ...]:
    """Return the lines that a wildcard stands for, in the order of the files' names.

    Args:
        folder: The folder of wildcards; None where the config names none.
        name: The wildcard's name: a path in the folder, without its ending, or a glob, in which ** goes through folders.

    Raises:
        WildcardError: No file has that name, or one cannot be read.
    """
    if folder is None:
        raise WildcardError(f"wildcard {quoted(name)}: the config names no folder of wildcards; set prompts.wildcards")
    return _lines_of(folder, name)


@lru_cache(maxsize=4096)
def _lines_of(folder: str, name: str) -> tuple[Line, ...]:
    files = _files(folder)
    if name.count("*") + name.count("?") > MOST_STARS:
        raise WildcardError(f"wildcard {quoted(name)}: has more than {MOST_STARS} signs of a glob")
    if "*" in name or "?" in name:
        pattern = re.compile(_pattern(name))
        found = [one for one in files if pattern.fullmatch(one)]
    else:
        found = [name] if name in files else []
    if not found:
        known = nearest(name, files) or f"; there are {len(files):,} files"
        raise WildcardError(f"wildcard {quoted(name)}: no such file in the folder of wildcards{known}")
    try:
        return tuple(line for one in found for line in _read(folder, one))
    except ManifestError as error:
        raise WildcardError(str(error)) from None


@lru_cache(maxsize=MOST_FILES)
def _read(folder: str, name: str) -> tuple[Line, ...]:
    file = f"{name}{ENDING}"
    return tuple(
        Line(text, f"wildcard {shown(file)}, line {number}")
        for number, text in read_lines(Path(folder) / file, f"wildcard {shown(file)}")
    )


@lru_cache(maxsize=16)
def _files(folder: str) -> tuple[str, ...]:
    """Return the names of a folder's wildcards, in their order. Links that lead out of the folder are none."""
    root = Path(folder).resolve()
    if not root.is_dir():
        raise WildcardError(f"prompts.wildcards: {shown(folder)}: no such folder")
    found = []
    for place, _, names in os.walk(root):
        for name in names:
            path = Path(place) / name
            if name.endswith(ENDING) and path.resolve().is_relative_to(root):
                found.append(path.relative_to(root).as_posix().removesuffix(ENDING))
                if len(found) > MOST_FILES:
                    raise WildcardError(f"prompts.wildcards: {shown(folder)}: has more than {MOST_FILES:,} files")
    return tuple(sorted(found))


def _pattern(name: str) -> str:
    signs = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(signs.get(part, re.escape(part)) for part in re.findall(r"\*\*|\*|\?|[^*?]+", name))


def identity_of(folder: str) -> str:
    """Return a hash of the names and contents of a folder's wildcards.

    Raises:
        ManifestError: The folder is not there, or a file cannot be read, or there is too much of them.
    """
    root, whole, size = folder, hashlib.sha256(), 0
    forget()  # files may have changed since another plan of this process
    try:
        for name in _files(root):
            content = (Path(root) / f"{name}{ENDING}").read_bytes()
            size += len(content)
            if size > MOST_IDENTITY:
                raise ManifestError(f"prompts.wildcards: {shown(folder)}: is larger than {MOST_IDENTITY // 2**30} GiB")
            whole.update(f"{len(name.encode())} {len(content)}\n".encode() + name.encode() + content)
    except WildcardError as error:
        raise ManifestError(str(error)) from None
    except OSError as error:
        raise ManifestError(f"prompts.wildcards: {shown(folder)}: {(error.strerror or str(error)).lower()}") from None
    return whole.hexdigest()


def forget() -> None:
    """Drop the files that were read from memory."""
    for remembered in (_lines_of, _read, _files):
        remembered.cache_clear()
