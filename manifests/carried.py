"""Carries columns that promptmill does not know into the output: makes their values plain and fixes one type a column.

A value is plain when JSON has it: null, bool, number, string, list or object. Parquet has more types, whose values become strings:
times in ISO 8601, decimals as written, bytes in hex. A float that is NaN is null, as pandas and Polars write a missing number. JSON
has no number for infinity, so a row with an infinite number makes no request.

The types are bool, int64, float64, string and json. A column of ints and floats is float64, as long as each int is at most 2^53,
which a float holds exactly. A column that mixes anything else is string, and so is a column with larger ints beside floats or with
ints beyond 64 bits; values that are no strings are written as JSON. A column with lists or objects in it is json: every value
becomes JSON text.
"""

import json
from collections.abc import Collection, Mapping
from datetime import date, time
from typing import Any

import pyarrow

from promptmill.configs.errors import quoted, shown
from promptmill.manifests.rows import ManifestError

MAX_COLUMNS = 1000
MAX_COLUMN_NAME = 200  # characters
MAX_DEPTH = 50  # of lists in lists

_BOOL, _INT, _FLOAT, _STRING, _JSON, _LARGE = 1, 2, 4, 8, 16, 32
EXACT = 2**53  # up to here every int is a float
_KINDS = {bool: _BOOL, int: _INT, float: _FLOAT, str: _STRING, list: _JSON, dict: _JSON, tuple: _JSON, type(None): 0}
_ARROW = {
    "bool": pyarrow.bool_(),
    "int64": pyarrow.int64(),
    "float64": pyarrow.float64(),
    "string": pyarrow.string(),
    "json": pyarrow.string(),
}


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON has it; the module's docstring gives the rules.

    Raises:
        ValueError: The value is nested too deeply, is infinite, or is text with a NUL character.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("holds a NUL character; is this text?")
        return value
    if isinstance(value, float):
        if value - value == 0:
            return value
        if value != value:
            return None
        raise ValueError(f"is {value:g}, and JSON has no such number; leave it empty")
    if value is None or isinstance(value, bool | int):
        return value
    if depth == MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} lists in lists")
    if isinstance(value, dict):
        return {plain(str(key)): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if isinstance(value, date | time) else str(value)


class Types:
    """Finds the types of carried columns, over any number of rows in any order; takes memory by the column, not by the row.

    Args:
        reserved: Names that the output has columns of its own for.
    """

    def __init__(self, reserved: Collection[str] = ()) -> None:
        self._reserved = frozenset(reserved)
        self._seen: dict[str, int] = {}

    def see(self, values: Mapping[str, Any]) -> list[str]:
        """Take a row's carried columns into account, or return what is wrong with their names and leave the row out.

        Raises:
            ManifestError: There are too many columns by now.
        """
        new = values.keys() - self._seen.keys()
        if new:
            problems = [problem for name in sorted(new) if (problem := self._problem(name))]
            if problems:
                return problems
        for name, value in values.items():
            kind = _KINDS.get(type(value), _STRING)
            if kind == _INT and not -EXACT <= value <= EXACT:
                kind = _INT | _LARGE if -(2**63) <= value < 2**63 else _STRING
            self._seen[name] = self._seen.get(name, 0) | kind
        if new:
            self._check_number()
        return []

    def seen(self) -> dict[str, int]:
        """Return the columns seen so far, for `join` in another process."""
        return dict(self._seen)

    def join(self, seen: Mapping[str, int]) -> bool:
        """Take in the columns of later rows, as another `Types` with the same reserved names has `seen` those rows.

        Returns:
            False where there would be too many columns. Nothing was taken in then; `see` says from which row on.
        """
        if len(self._seen.keys() | seen.keys()) > MAX_COLUMNS:
            return False
        for name, kinds in seen.items():
            self._seen[name] = self._seen.get(name, 0) | kinds
        return True

    def _problem(self, name: str) -> str | None:
        if name in self._reserved:
            return f"{name}: the output has a column of its own with this name; rename it"
        if "\0" in name or "\ufeff" in name:
            return f"{shown(name)!r}: a column's name holds a NUL character or U+FEFF, a byte order mark; take it out"
        if not name or len(name) > MAX_COLUMN_NAME:
            return f"{quoted(name)}: a column's name has 1 to {MAX_COLUMN_NAME} characters, this one has {len(name)}"
        return None

    def _check_number(self) -> None:
        if len(self._seen) > MAX_COLUMNS:
            some = shown(", ".join(sorted(self._seen)))
            raise ManifestError(f"the manifest has more than {MAX_COLUMNS:,} columns of its own ({some}); put what varies into one")

    def result(self) -> dict[str, str]:
        """Return the type of each column, sorted by name."""
        return {name: _type(kinds) for name, kinds in sorted(self._seen.items())}


def _type(kinds: int) -> str:
    if kinds & _JSON:
        return "json"
    if kinds == _BOOL:
        return "bool"
    if kinds == 0 or kinds & (_STRING | _BOOL) or (kinds & _LARGE and kinds & _FLOAT):
        return "string"
    return "float64" if kinds & _FLOAT else "int64"


def cast(value: Any, kind: str) -> bool | int | float | str | None:
    """Return a value of a column as the column's type has it; None stays None."""
    if value is None:
        return None
    if kind == "float64":
        return float(value)
    if kind == "json":
        return json.dumps(plain(value), ensure_ascii=False)
    if kind == "string" and not isinstance(value, str):
        value = plain(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value


def arrow_types(types: Mapping[str, str]) -> dict[str, pyarrow.DataType]:
    """Return the types of `Types.result` as Arrow has them; json is text in Arrow."""
    return {name: _ARROW[kind] for name, kind in types.items()}
