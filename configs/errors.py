"""Puts the mistakes of a user into one line each: where, what was found, what would do."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from promptmill.configs.keys import key_path, keys_of

# Tags of pydantic for the forms that a value may have; they are no part of its path.
A_NUMBER, AN_OBJECT = "(a number)", "(an object)"

UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

LONGEST_WORD = 100  # characters of what a user wrote that go into a message


class ConfigError(ValueError):
    """Reports a config that cannot be used; `problems` holds one line each, and the message all of them."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint at the known word most like this one in any case, as `; did you mean 'x'?`, or ""."""
    if len(word) > LONGEST_WORD:
        return ""
    spelled = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=0.6)
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""


def shown(text: str, most: int = LONGEST_WORD) -> str:
    """Return a user's or a library's text as it goes into a line.

    A text longer than `most` characters loses its middle. Characters that would steer a terminal or reorder the line become
    escapes.
    """
    if len(text) > most:
        text = f"{text[: most - 40]}…{text[-39:]}"
    return escaped(text)


def quoted(text: str) -> str:
    """Return a text as `shown` has it, between quotation marks."""
    return f"'{shown(text)}'"


def escaped(text: str) -> str:
    """Return a text on one line that is safe to print.

    Line ends, controls of a terminal (C0, C1, DEL), characters that reorder a line or cannot be seen, and halves of surrogate pairs
    become escapes of JSON, so that a line of JSON stays one with the same values.
    """
    return UNSAFE.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return the lines for pydantic's findings: `model.bsae: unknown key; did you mean 'base'?`.

    Args:
        error: The error of one model.
        model: The model.
    """
    lines: dict[str, str] = {}
    tried: dict[str, list[str]] = {}  # by key, what is wrong with it in each of the forms that it may have
    found: dict[str, str] = {}
    for number, problem in enumerate(error.errors()):
        unknown = problem["type"] == "extra_forbidden"
        keys, forms = key_path((model,), problem["loc"], unknown)
        where = ".".join(shown(key) for key in keys) or "the whole"
        message = problem["msg"].removeprefix("Value error, ")
        if unknown:
            siblings = keys_of(forms)
            hint = nearest(keys[-1], siblings) or (f"; known: {', '.join(siblings)}" if siblings else "")
            lines[str(number)] = f"{where}: unknown key{hint}"
        elif problem["type"] == "union_tag_invalid":
            kinds = problem["ctx"]["expected_tags"].replace("'", "")
            tag = problem["ctx"]["tag"]
            lines[str(number)] = f"{where}.kind: {quoted(tag)} is none{nearest(tag, kinds.split(', '))}; there are {kinds}"
        elif problem["type"] == "union_tag_not_found":
            lines[str(number)] = f"{where}.kind: missing; it has to be given"
        elif problem["type"] == "missing":
            lines[str(number)] = f"{where}: missing; it has to be given"
        elif problem["type"] == "value_error" and not keys:
            lines[str(number)] = message
        else:
            lines[where] = ""
            tried.setdefault(where, []).append(PYTHONS_WORDS.sub(_in_words, message[0].lower() + message[1:]))
            found[where] = _found(problem["input"])
    for where, messages in tried.items():
        if any(other.startswith(f"{where}.") for other in tried) and len(messages) == 1 and _is_of_a_form(messages[0]):
            del lines[where]  # the value has the other form, with a fault inside
        else:
            lines[where] = f"{where}: {_either(messages)}{found[where]}"
    return [" ".join(line.split()) for line in lines.values()]


SHOULD_BE = "input should be "
PYTHONS_WORDS = re.compile("a valid tuple|a valid dictionary( or instance of .*)?")


def _in_words(found: re.Match[str]) -> str:
    return "a list" if found[0].endswith("tuple") else "keys and values"


def _is_of_a_form(message: str) -> bool:
    return message.startswith(f"{SHOULD_BE}a ") or message == f"{SHOULD_BE}keys and values"


def _either(messages: Sequence[str]) -> str:
    """Return the messages of the forms that a value may have as one: input should be a valid integer or 'auto'."""
    if len(messages) == 1 or not all(message.startswith(SHOULD_BE) for message in messages):
        return "; or ".join(dict.fromkeys(messages))
    forms = (message.removeprefix(SHOULD_BE).partition(", unable to")[0] for message in messages)
    return SHOULD_BE + " or ".join(dict.fromkeys(forms))


def _found(value: Any) -> str:
    if isinstance(value, dict | list) or value is None:
        return ""
    text = repr(value).lower() if isinstance(value, bool) else repr(value)
    return f" (found {text if len(text) <= 60 else text[:57] + '…'})"
