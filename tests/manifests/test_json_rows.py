import io
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.manifests.json_rows import parse_row, read_array
from promptmill.manifests.rows import MAX_ROW, ManifestError

CHARACTERS = st.characters(exclude_categories=("Cs",))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(CHARACTERS, max_size=8)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(CHARACTERS, max_size=3), inner, max_size=3)
)
ROWS = st.lists(st.dictionaries(st.text(CHARACTERS, max_size=5), VALUES, max_size=4), max_size=8)


def read(text, piece=2**16):
    return list(read_array("m.json", io.StringIO(text), piece))


@given(ROWS, st.integers(1, 40), st.sampled_from([None, 2]), st.booleans(), st.sampled_from(["", " \n", "\t\r\n"]))
def test_an_array_is_read_as_json_does_however_it_is_cut(rows, piece, indent, ascii_only, space):
    text = space + json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + space
    assert read(text, piece) == json.loads(text) == rows


@given(st.lists(SCALARS | st.lists(SCALARS, max_size=2), min_size=1, max_size=6), st.integers(1, 12))
def test_what_is_no_row_is_one_broken_row_wherever_it_is_cut(values, piece):
    assert read(json.dumps(values), piece) == [f"holds {type(value).__name__}, not columns and values" for value in values]


@given(ROWS.filter(bool), st.data())
def test_a_cut_off_array_is_an_error_after_the_whole_rows(rows, data):
    text = json.dumps(rows)
    cut = data.draw(st.integers(1, len(text) - 1))
    found = []
    with pytest.raises(ManifestError, match=rf"m\.json, row {'[0-9]+'}: not JSON"):
        found.extend(read_array("m.json", io.StringIO(text[:cut]), 7))
    assert found == rows[: len(found)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "x"}', "m.json: holds dict, not a list of rows; a row a line is .jsonl"),
        ('"x"', "m.json: not JSON: a list of rows begins with ["),
        ("[", "m.json, row 1: not JSON: Expecting value"),
        ('[{"a": 1} {"a": 2}]', "m.json, row 1: not JSON: neither ',' nor ']' follows"),
        ('[{"a": 1}, ]', "m.json, row 2: not JSON: Expecting value"),
        ('[{"a": 1}, {"a": }]', "m.json, row 2: not JSON: Expecting value"),
        ('[{"a": 1}, {oops}]', "m.json, row 2: not JSON: Expecting property name"),
        ('[{"a": 1}] x', "m.json: not JSON: there is more behind the list's end"),
        ('[] []', "m.json: not JSON: there is more behind the list's end"),
        ('[{"a": 1}, ' + "[" * 100_000, "m.json, row 2: not JSON: maximum recursion depth"),
        ('[{"a": "' + "x" * (MAX_ROW + 2**17) + '"}]', "m.json, row 1: not JSON: no row within 16 MiB: Unterminated string"),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_broken_array_names_the_row(text, says):
    with pytest.raises(ManifestError) as caught:
        read(text)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_an_array_takes_no_memory_by_the_row():
    class Endless(io.StringIO):
        """A long list that is nowhere."""

        left = whole = 100_000_000

        def read(self, size=-1):
            self.left -= size
            row = f'{{"prompt": "{"circle " * 200}"}},'
            return ("[" if self.left + size == self.whole else "") + row * (size // len(row) + 1) if self.left > 0 else "{}]"

    tracemalloc.start()
    try:
        rows = sum(1 for _, row in zip(range(10_000), read_array("m.json", Endless()), strict=False) if row)
        assert rows == 10_000 and tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", [r'{"prompt": "\ud83d"}', r'{"a": ["\uDE00"]}', r'{"\udbff": 1}'])
def test_half_a_character_breaks_its_row_alone(text):
    assert parse_row(text) == "holds one half of a surrogate pair, which is no character"
    assert read(f'[{text}, {{"prompt": "x"}}]') == [parse_row(text), {"prompt": "x"}]


def test_whole_characters_outside_the_first_plane_are_text():
    assert parse_row(r'{"prompt": "\ud83d\ude00"}') == {"prompt": "😀"}
