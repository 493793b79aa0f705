"""Finds the lines that a wildcard of a template stands for: those of a text file, or of all files that a glob names."""

import hashlib
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from promptmill.configs.errors import nearest, quoted, shown
from promptmill.manifests.line_files import read_bytes, read_lines
from promptmill.manifests.rows import ManifestError

ENDING = ".txt"
NAMED = re.compile(r"__([\w\-/.*?~@+]+?(?:\([^()]*\))?)__")  # a wildcard in a text
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
    """Return the names of a folder's wildcards, in their order. Links that lead out of the folder are none, nor are pipes."""
    root = Path(folder).resolve()
    if not root.is_dir():
        raise WildcardError(f"prompts.wildcards: {shown(folder)}: no such folder")
    found = []
    for place, _, names in os.walk(root):
        for name in names:
            path = Path(place) / name
            if name.endswith(ENDING) and path.is_file() and path.resolve().is_relative_to(root):
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
            content = read_bytes(Path(root) / f"{name}{ENDING}", f"wildcard {shown(f'{name}{ENDING}')}")
            size += len(content)
            if size > MOST_IDENTITY:
                raise ManifestError(f"prompts.wildcards: {shown(folder)}: is larger than {MOST_IDENTITY // 2**30} GiB")
            said = name.encode("utf-8", "surrogateescape")  # a name may be no UTF-8
            whole.update(f"{len(said)} {len(content)}\n".encode() + said + content)
    except WildcardError as error:
        raise ManifestError(str(error)) from None
    return whole.hexdigest()


@lru_cache(maxsize=4096)
def circle(folder: str | None, name: str) -> str | None:
    """Return how a wildcard leads back to itself, or to another that does, through any of its lines; None where it does not.

    So a template is refused whatever is chosen.
    """
    done: set[str] = set()
    trail: dict[str, None] = {}
    # A stack in place of recursion: chains of wildcards can be as long as the folder is large.
    stack: list[tuple[str, Iterator[str]]] = [(name, iter(_names(folder, name)))]
    trail[name] = None
    while stack:
        here, rest = stack[-1]
        inner = next(rest, None)
        if inner is None:
            stack.pop()
            trail.pop(here)
            done.add(here)
        elif inner in trail:
            return shown(" in ".join(f"__{one}__" for one in [inner, *reversed(trail)]), 300)
        elif inner not in done:
            trail[inner] = None
            stack.append((inner, iter(_names(folder, inner))))
    return None


def _names(folder: str | None, name: str) -> list[str]:
    """Return the wildcards that the lines of a wildcard name. What is not there is none: whoever chooses its line is told."""
    try:
        lines = lines_of(folder, name)
    except WildcardError:
        return []
    return list(dict.fromkeys(found for line in lines if "__" in line for found in NAMED.findall(line)))


def forget() -> None:
    """Drop the files that were read from memory, and what follows from them."""
    for remembered in (_lines_of, _read, _files, circle):
        remembered.cache_clear()
