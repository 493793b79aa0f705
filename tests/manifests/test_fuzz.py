"""A short slice of `python -m benchmarks.fuzz_manifests`, and that it finds what it is for."""

import json

import pytest

from benchmarks import fuzz_manifests
from benchmarks.fuzz_manifests import Case, check, check_damaged, fuzz, is_safe_line
from promptmill.manifests import json_rows

SECONDS = 10


def test_rows_of_every_format_are_read_as_meant_or_refused():
    seen = fuzz(SECONDS)
    for ending in ("jsonl", "json", "csv", "tsv", "txt", "tar", "parquet"):
        assert seen[f"{ending}: read"], seen
    assert seen["damaged: rows"] and seen["damaged: refused whole"]


def test_a_reader_that_takes_the_last_of_two_keys_is_found(tmp_path, monkeypatch):
    twice = Case("m.jsonl", b'{"prompt": "a", "prompt": "b"}', [None], True)
    check(tmp_path, fuzz_manifests.Counter(), twice)
    monkeypatch.setattr(json_rows, "_STRICT", json.JSONDecoder())
    with pytest.raises(AssertionError, match="had to be refused"):
        check(tmp_path, fuzz_manifests.Counter(), twice)


@pytest.mark.parametrize("meant", [{"prompt": "a", "n": 1.0}, {"prompt": "a", "n": "1"}, {"prompt": "b", "n": 1}, {"prompt": "a"}])
def test_a_row_with_another_value_type_or_column_than_was_meant_is_found(tmp_path, meant):
    content = b'{"prompt": "a", "n": 1}'
    check(tmp_path, fuzz_manifests.Counter(), Case("m.jsonl", content, [{"prompt": "a", "n": 1}], True))
    with pytest.raises(AssertionError):
        check(tmp_path, fuzz_manifests.Counter(), Case("m.jsonl", content, [meant], True))


def test_letters_newer_than_python_are_shown_and_what_steers_a_terminal_is_found(tmp_path):
    check_damaged(tmp_path, fuzz_manifests.Counter(), Case("m.csv", "\x01;\U00018d09".encode(), [], False))
    assert is_safe_line("日本\u3000\U00018d09")
    assert not any(is_safe_line(f"a{sign}b") for sign in "\n\r\x1b\x9b\u2028\u202e\u2066\ud800")
