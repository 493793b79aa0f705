"""Reads the JSON of promptmill's own files, which a stranger may have written, and checks that values are what dataclasses say.

`read_json` parses and checks at once, by pydantic. `checked` is for values that were built otherwise, as those of a plan.
"""

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from promptmill.configs.errors import shown

DEEPEST = 100  # lists and objects in one another; a manifest's own columns may have 50 lists in lists
MOST_VALUES = 10_000_000  # by the signs that stand between values: each may take a hundred bytes of memory
LARGEST = 2**63  # of whole numbers: beyond it they fit into no column

WORDS = {int: "number", float: "number", str: "text"}
SIGNS = ",:[{"
TEXT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Known = TypeVar("Known")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


Whole = Annotated[int, Field(ge=0, lt=LARGEST)]  # a count, a size or a number of a shard
Printable = Annotated[str, AfterValidator(_printable)]


def parse_json(content: bytes | str) -> Any:
    """Parse one JSON value.

    Raises:
        ValueError: It is no JSON, or nested deeper, or of more values, than any file of ours.
    """
    text = content if isinstance(content, str) else content.decode()
    # Counted before Python makes objects of them: two bytes of JSON can become sixty of memory.
    if has_too_many(text):
        raise ValueError(f"JSON of more than {MOST_VALUES:,} values")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"JSON nested deeper than {DEEPEST}") from None
    inner = [value]
    for _ in range(DEEPEST):
        inner = [
            item
            for outer in inner
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not inner:
            break
    else:
        raise ValueError(f"JSON nested deeper than {DEEPEST}")
    if SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # half a pair fits into no file
    return value


def read_json(kind: type[Known], content: bytes, most: int | None = None, unknown: Literal["forbid", "ignore"] = "forbid") -> Known:
    """Parse one JSON value that has to be what a type says, strictly: no text is taken for a number, nor a float for an integer.

    Args:
        kind: A dataclass, or another type that pydantic knows. Lists and dicts of any length in it need `FailFast`, else pydantic
            gathers an error for each of their items.
        content: UTF-8.
        most: Values that there may be; `MOST_VALUES` unless said otherwise.
        unknown: What is to be done about keys that the type does not know.

    Raises:
        ValueError: It is not; one line. What a `__post_init__` raises comes out as it is.
    """
    most = MOST_VALUES if most is None else most
    if len(content) > most and has_too_many(content.decode(), most):
        raise ValueError(f"JSON of more than {most:,} values")
    try:
        adapter: TypeAdapter[Known] = _adapter(kind)  # type: ignore[arg-type]  # mypy takes no type for hashable
        return adapter.validate_json(content, strict=True, extra=unknown)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, ValueError):
        raise own
    where = f"{shown('.'.join(map(str, first['loc'])))}: " if first["loc"] else ""
    value = first["input"]
    told = isinstance(value, str | int | float) and not first["type"].startswith("json_")
    raise ValueError(f"{where}{first['msg'][0].lower()}{first['msg'][1:]}" + (f" (found {value!r:.60})" if told else ""))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def has_too_many(text: str, most: int | None = None) -> bool:
    """Return whether a JSON text has more values than it may, `MOST_VALUES` unless said otherwise."""
    most = MOST_VALUES if most is None else most
    if sum(map(text.count, SIGNS)) <= most:
        return False
    # Prompts are full of commas: what stands in texts separates no values.
    bare = TEXT.sub("", text)
    return sum(map(bare.count, SIGNS)) > most


def checked(value: Known) -> Known:
    """Return a dataclass's instance as it is, its fields found to hold what their annotations say.

    Raises:
        TypeError: One does not, or holds a whole number beyond 64 bits.
    """
    of: type = type(value)
    for name, kind, what in _fields(of):
        if not kind(getattr(value, name)):
            raise TypeError(f"{name} is no {what}")
    return value


@functools.cache
def _fields(of: type) -> tuple[tuple[str, Callable[[Any], bool], str], ...]:
    hints = typing.get_type_hints(of)
    named = ((field.name, hints[field.name]) for field in dataclasses.fields(of))
    return tuple((name, _kind(hint), WORDS.get(hint, "value of its kind")) for name, hint in named)


def _kind(annotation: Any) -> Callable[[Any], bool]:
    """Return what tells whether a value is of an annotation's type."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return lambda value: True
    if annotation is int:
        return lambda value: type(value) is int and abs(value) < LARGEST
    if annotation is float:
        return lambda value: type(value) is float or (type(value) is int and abs(value) < LARGEST)
    if annotation is None or annotation is types.NoneType:
        return lambda value: value is None
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in inner
    if origin in (Union, types.UnionType):
        kinds = tuple(_kind(one) for one in inner)
        return lambda value: any(kind(value) for kind in kinds)
    if origin in (tuple, list, Sequence):
        item = _kind(inner[0])
        return lambda value: isinstance(value, list | tuple) and all(map(item, value))
    if origin in (dict, Mapping):
        key, item = _kind(inner[0]), _kind(inner[1])
        return lambda value: isinstance(value, dict) and all(map(key, value)) and all(map(item, value.values()))
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return functools.partial(_is_checked, annotation)
    return lambda value: isinstance(value, annotation)


def _is_checked(of: type, value: Any) -> bool:
    try:
        return isinstance(value, of) and checked(value) is value
    except TypeError:
        return False
