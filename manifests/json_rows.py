"""Reads rows that are JSON: one by itself, or an array of them as a stream in bounded memory.

ijson does not serve here: its memory grows with the square of the nesting (20,000 brackets take 1 GB), it hides doubled keys and
half characters, and it ends a whole file at a NaN or a number beyond 64 bits, where one row is broken.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, TextIO

from promptmill.configs.errors import shown
from promptmill.manifests.rows import MAX_ROW, ManifestError, Values

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_SEPARATORS = frozenset(",]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BOM = "\ufeff"


class _TwiceError(ValueError):
    """A key that an object has twice; the message is the key."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


_STRICT = json.JSONDecoder(object_pairs_hook=_once)


def parse_row(text: str) -> Values:
    """Return the row that a JSON text holds, or what is wrong with the row."""
    if text.startswith(_BOM):
        return "begins with U+FEFF, a byte order mark, as files that were joined have inside; take it out"
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return _checked(row, text)


def parse_list(text: str) -> Any:
    """Return the value of a JSON text that a cell holds.

    Raises:
        ValueError, RecursionError: It is not JSON, or an object in it has a key twice.
    """
    try:
        return _STRICT.decode(text)
    except _TwiceError as error:
        raise ValueError(f"{shown(str(error))}: given twice") from None


def _checked(row: Any, text: str) -> Values:
    try:
        return _looked_through(row, text)
    except RecursionError:
        return "nested too deeply"


def _looked_through(row: Any, text: str) -> Values:
    if not isinstance(row, dict):
        return f"holds {type(row).__name__}, not columns and values"
    # As many colons as are left in keys and texts leave none that a doubled key could have had; unless one was written as \u003a.
    if (colons := text.count(":")) != len(row) and ("\\u" in text or colons != _colons(row)):
        try:
            _STRICT.decode(text)
        except _TwiceError as error:
            return f"{shown(str(error))}: given twice; a row has each column once"
    if "\\u" in text and _SURROGATE.search(text):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "holds one half of a surrogate pair, which is no character"
    for name, value in row.items():
        if value.__class__ in _MAY_HOLD and (found := _no_number(value)) is not None:
            return f"{shown(name)}: input should be a finite number (found {found:g}); JSON has no such number: write null"
    return row


def _colons(value: Any) -> int:
    """Return how many colons the JSON text of a value has at least, and exactly where no key was given twice."""
    if isinstance(value, str):
        return value.count(":")
    if isinstance(value, dict):
        return len(value) + sum(key.count(":") + _colons(item) for key, item in value.items())
    return sum(map(_colons, value)) if isinstance(value, list) else 0


_MAY_HOLD = frozenset((float, list, dict))


def _no_number(value: Any) -> float | None:
    """Return the first float of a value that JSON has no number for: NaN, or one beyond the largest."""
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in items if (found := _no_number(item)) is not None), None)


def read_array(file: str, text: TextIO, piece: int = 2**16) -> Iterator[Values]:
    """The rows of a JSON array, each as soon as it is there.

    Args:
        file: Named in errors.
        text: A stream whose whole content is the array.
        piece: Characters read at a time, at least; the rows do not depend on it.

    Raises:
        ManifestError: Not an array, or not JSON: behind a row that is not JSON nobody knows where the next begins.
    """
    ahead = _Ahead(text, piece)
    first = ahead.take()
    if first == "{":
        raise ManifestError(f"{file}: holds dict, not a list of rows; a row a line is .jsonl")
    if first not in ("[", ""):
        raise ManifestError(f"{file}: not JSON: a list of rows begins with [")
    behind = "," if first and ahead.peek() != "]" else ahead.take()
    number = 0
    while behind == ",":
        number += 1
        try:
            row = ahead.take_value()
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ManifestError(f"{file}, row {number}: not JSON: {reason}") from None
        yield row
        behind = ahead.take()
    if ahead.peek():
        raise ManifestError(f"{file}: not JSON: there is more behind the list's end")


class _Ahead:
    """What is read of a text and not yet taken: at most a piece more than a row, or twice the row."""

    def __init__(self, text: TextIO, piece: int):
        self._text, self._piece = text, piece
        self._buffer, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no space; none at the end."""
        blank = 0
        while True:
            before, self._at = self._at, self._behind_space(self._at)
            blank += self._at - before
            if self._at < len(self._buffer) or self._ended:
                return self._buffer[self._at : self._at + 1]
            if blank > MAX_ROW:
                raise ValueError(f"more than {MAX_ROW // 2**20} MiB of nothing but spaces")
            self._read()

    def take(self) -> str:
        character = self.peek()
        self._at += 1
        return character

    def take_value(self) -> Values:
        """Take a value, up to the comma or bracket behind it, which alone shows that a number is whole.

        Raises:
            ValueError, RecursionError: It is not JSON, or too long.
        """
        self.peek()
        while True:
            wrong: Exception = ValueError("neither ',' nor ']' follows")
            try:
                row, end = _DECODER.raw_decode(self._buffer, self._at)
                behind = self._behind_space(end)
                if self._buffer[behind : behind + 1] in _SEPARATORS:
                    text, self._at = self._buffer[self._at : end], behind
                    return _checked(row, text)
            except (ValueError, RecursionError) as error:
                wrong = error
            if self._ended:
                raise wrong
            if len(self._buffer) - self._at > MAX_ROW:
                reason = wrong.msg if isinstance(wrong, json.JSONDecodeError) else wrong
                raise ValueError(f"no row within {MAX_ROW // 2**20} MiB: {reason}")
            self._read()

    def _read(self) -> None:
        # A value that does not end in the buffer is parsed again from its start, so the buffer doubles.
        pending = len(self._buffer) - self._at
        new = self._text.read(max(self._piece, min(pending, MAX_ROW - pending)))
        self._buffer, self._at, self._ended = self._buffer[self._at :] + new, 0, not new

    def _behind_space(self, start: int) -> int:
        space = _SPACE.match(self._buffer, start)
        assert space is not None  # it matches nothing too
        return space.end()
