"""JSON of promptmill's own files, as a stranger may have written it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import FailFast

from promptmill.configs.json_values import DEEPEST, Whole, checked, parse_json, read_json


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


@dataclasses.dataclass(frozen=True)
class Record:
    number: Whole
    share: float = 1.0
    some: tuple[Inner, ...] = ()
    counts: Annotated[dict[str, Whole], FailFast()] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.number == 13:
            raise LookupValueError("no 13")


class LookupValueError(ValueError):
    pass


def test_json_of_a_type_is_read_as_it():
    content = b'{"number": 3, "share": 2, "some": [{"name": "x"}], "counts": {"a": 1}}'
    assert read_json(Record, content) == Record(3, 2.0, (Inner("x"),), {"a": 1})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "EOF while parsing"),
        (b"[]", "input should be an object"),
        (b"{}", "number: field required"),
        (b'{"number": "1"}', r"number: input should be a valid integer \(found '1'\)"),
        (b'{"number": true}', r"number: input should be a valid integer \(found True\)"),
        (b'{"number": 1.0}', r"number: input should be a valid integer \(found 1.0\)"),
        (b'{"number": -1}', r"number: input should be greater than or equal to 0 \(found -1\)"),
        (b'{"number": %d}' % 2**63, "number: input should be less than 9223372036854775808"),
        (b'{"number": ' + b"9" * 5000 + b"}", "number out of range"),
        (b'{"number": 1, "share": "1"}', "share: input should be a valid number"),
        (b'{"number": 1, "some": {"name": "x"}}', "some: input should be a valid array"),
        (b'{"number": 1, "some": [{"name": 1}]}', r"some.0.name: input should be a valid string \(found 1\)"),
        (b'{"number": 1, "counts": {"a\\n\\u001b": ""}}', r"counts.a\\n\\u001b: input should be a valid integer"),
        (b'{"number": 1, "x\\n\\u202e": 1}', r"x\\n\\u202e: unexpected keyword argument"),
        (b'{"number": 1, "fingerprint": "\\ud800"}', "unexpected end of hex escape|surrogate"),
        (b'{"number": 1\xff}', "expected"),
        (b"[" * 200_000, "recursion limit exceeded"),
        (b'{"counts":' * 200_000, "recursion limit exceeded"),
        (b'{"counts": {%s}}' % b",".join(b'"%d":-1' % number for number in range(10_000)), "number: field required"),
        (b"[" + b"[]," * 6_000_000 + b"[]]", "more than 10,000,000 values"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_json_that_is_not_of_a_type_is_one_short_line(content, said):
    with pytest.raises(ValueError, match=said) as raised:
        read_json(Record, content)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 300


def test_unknown_keys_may_be_passed_over_and_values_may_be_fewer():
    content = b'{"number": 1, "more": [1, 2, 3, 4]}'
    assert read_json(Record, content, unknown="ignore") == Record(1)
    with pytest.raises(ValueError, match="more than 3 values"):
        read_json(Record, content, 3, "ignore")


def test_what_a_record_says_of_itself_comes_out_as_it_is():
    with pytest.raises(LookupValueError, match=r"^no 13$"):
        read_json(Record, b'{"number": 13}')
