"""Compares two nested values, as a plan's inputs then and now, and puts the differences into words."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from promptmill.configs.errors import shown


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """List the differences by name, sorted: the path of a value, as `config.model.batch`, and the words `was …` and `is …`."""
    was, is_ = dict(_flat(then)), dict(_flat(now))
    return [
        (name, f"was {_shown(was, name)}", f"is {_shown(is_, name)}")
        for name in sorted({*was, *is_})
        if was.get(name) != is_.get(name)
    ]


def _flat(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from _flat(value, f"{path}.{name}" if path else str(name))
    elif isinstance(values, list | tuple) and values:
        for number, value in enumerate(values):
            yield from _flat(value, f"{path}.{number}")
    else:
        yield path, values


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not there"
    value = values[name]
    # The beginning of a hash is enough to tell it from another.
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value) else shown(repr(value), 60)
