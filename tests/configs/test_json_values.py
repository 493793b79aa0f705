"""JSON of promptmill's own files, as a stranger may have written it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from promptmill.configs.json_values import DEEPEST, checked, parse_json


@dataclasses.dataclass(frozen=True)
class Inner:
    name: str


@dataclasses.dataclass(frozen=True)
class Outer:
    number: int = 1
    share: float = 1.0
    maybe: str | None = None
    mode: Literal["a", "b"] = "a"
    inner: Inner = Inner("x")
    some: tuple[Inner, ...] = ()
    scores: Sequence[float | None] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    whatever: Any = None


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 200_000])
@pytest.mark.parametrize("signs", [("[", "]"), ('{"a":', "}")])
def test_what_is_nested_too_deep_is_a_line_and_no_recursion_error(depth, signs):
    inner = "1" if signs[0] != "[" else ""
    for content in (signs[0] * depth + inner + signs[1] * depth, signs[0] * depth):
        with pytest.raises(ValueError, match=r"nested deeper than 100|Expecting"):
            parse_json(content.encode())


def test_what_a_manifests_own_columns_may_nest_is_read():
    text = "[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1)
    assert json.dumps(parse_json(text)) == text


def test_more_values_than_any_file_of_ours_are_refused_before_they_are_objects():
    with pytest.raises(ValueError, match="more than 10,000,000 values"):
        parse_json(b"[" + b"[]," * 6_000_000 + b"[]]")


@pytest.mark.parametrize("content", [b'"\\ud800"', b"\xff", b'"a\xed\xa0\x80"', b"", b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_fits_into_no_file_of_ours_is_a_value_error(content):
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"number": "1"}, "number is no number"),
        ({"number": True}, "number is no number"),
        ({"number": 1.0}, "number is no number"),
        ({"number": 2**63}, "number is no number"),
        ({"share": None}, "share is no number"),
        ({"maybe": 1}, "maybe is no"),
        ({"mode": "c"}, "mode is no"),
        ({"mode": ["a"]}, "mode is no"),
        ({"inner": {"name": "x"}}, "inner is no"),
        ({"inner": Inner(1)}, "inner is no"),
        ({"some": (Inner("x"), "x")}, "some is no"),
        ({"scores": [1.0, "1"]}, "scores is no"),
        ({"scores": "12"}, "scores is no"),
        ({"counts": {"a": "1"}}, "counts is no"),
        ({"counts": []}, "counts is no"),
    ],
)
def test_a_field_of_another_type_is_named(wrong, said):
    with pytest.raises(TypeError, match=said):
        checked(Outer(**wrong))


def test_what_fields_may_hold_passes():
    outer = Outer(-(2**62), 3, "x", "b", Inner(""), (Inner("x"),), [None, 1, 2.5], {"a": 1}, object())
    assert checked(outer) is outer
