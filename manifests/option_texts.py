"""Cuts a line of options into words with their columns, as a shell does, and checks the values of options."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from promptmill.configs.errors import quoted
from promptmill.configs.sampler_names import SAMPLERS, sampler_of


class OptionError(ValueError):
    """Reports a fault of a line, and the character where it lies.

    Attributes:
        column: The column of the character, counted from 1.
    """

    def __init__(self, column: int, message: str):
        self.column = column
        super().__init__(message)


@dataclass(frozen=True)
class Word:
    """Holds a word of a line, without its quotes, and the column where it begins, counted from 1."""

    text: str
    column: int


def words_of(line: str) -> list[Word]:
    """Return the words of a line: quotes and backslashes do what they do in a POSIX shell, and nothing else is special.

    Raises:
        OptionError: A quote is not closed, or nothing stands behind a backslash.
    """
    words: list[Word] = []
    at, end = 0, len(line)
    while at < end:
        if line[at].isspace():
            at += 1
            continue
        begin, parts = at, list[str]()
        while at < end and not line[at].isspace():
            sign = line[at]
            if sign in "'\"":
                part, at = _within_quotes(line, at)
            elif sign == "\\":
                if at + 1 == end:
                    raise OptionError(at + 1, "nothing stands behind the backslash; double it")
                part, at = line[at + 1], at + 2
            else:
                stop = at
                while stop < end and not line[stop].isspace() and line[stop] not in "'\"\\":
                    stop += 1
                part, at = line[at:stop], stop
            parts.append(part)
        words.append(Word("".join(parts), begin + 1))
    return words


def _within_quotes(line: str, at: int) -> tuple[str, int]:
    """Return the text within the quotes that open at a place, and the place behind them."""
    sign, parts, place = line[at], list[str](), at + 1
    while place < len(line):
        if line[place] == sign:
            return "".join(parts), place + 1
        if sign == '"' and line[place] == "\\" and line[place + 1 : place + 2] in ('"', "\\"):
            place += 1
        parts.append(line[place])
        place += 1
    apostrophe = "; an apostrophe in words without quotes is written \\'" if sign == "'" else ""
    raise OptionError(at + 1, f"a quote is opened and never closed{apostrophe}")


def whole(text: str) -> int:
    """Return the whole number that a text is. Raises ValueError in words."""
    try:
        return int(text) if len(text) <= 40 else int("")
    except ValueError:
        raise ValueError(f"{quoted(text)} is no whole number") from None


def number(text: str) -> float:
    """Return the number that a text is. Raises ValueError in words."""
    try:
        found = float(text) if len(text) <= 40 else float("")
    except ValueError:
        raise ValueError(f"{quoted(text)} is no number") from None
    if found - found != 0:
        raise ValueError(f"{quoted(text)} is no number")
    return found


def scheduler(text: str) -> str:
    """Return the scheduler that another tool's sampler means. Raises ValueError in words."""
    sampler = sampler_of(text)
    if sampler.scheduler is None:
        known = ", ".join(name for name, of in SAMPLERS.items() if of)
        why = "has no counterpart among the schedulers" if sampler.known else "is no sampler that is known"
        raise ValueError(f"{quoted(text)} {why}; those are {known}")
    if not sampler.spaced:
        raise ValueError(f"{quoted(text)} spaces its sigmas as no scheduler here does; leave the spacing out")
    return sampler.scheduler


def valued(option: Word, name: str, read: Callable[[str], Any]) -> Any:
    """Return the value of an option's word.

    Raises:
        OptionError: The word is none of the option's values; the message names the option.
    """
    try:
        return read(option.text)
    except ValueError as error:
        raise OptionError(option.column, f"{name}: {error}") from None
