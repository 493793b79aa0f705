import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.columns import (
    COLUMNS,
    FORMAT,
    FORMAT_KEY,
    ROLES_KEY,
    NewerFormatError,
    Role,
    Stated,
    always,
    reserved,
    roles,
    roles_in,
    score_column,
)
from promptmill.shards.tables import declared_in, encode_table, make_table, ranks_by, read_table, schema, with_declared

BY_NAME = {column.name: column for column in COLUMNS}
DECLARED = (score_column("taste"), BY_NAME["rank_score"], BY_NAME["rejected_for"])
CARRIED = {"topic": pa.string(), "mood_score": pa.float64()}
ROWS = [{"key": f"000000-0000{n}-0000", "id": str(n), "taste_score": 1.5, "topic": "cats", "mood_score": 2.5} for n in range(3)]


def form_of(format, declared=DECLARED):
    return schema(CARRIED, 4, declared=declared, format=format)


def test_the_names_of_columns_differ_and_none_is_of_a_format_to_come():
    assert len(BY_NAME) == len(COLUMNS)
    assert all(1 <= column.since <= FORMAT and column.meaning for column in COLUMNS)


def test_a_dataset_of_the_first_format_is_to_the_byte_one_of_the_second_but_for_what_says_the_format():
    old, new = (encode_table(make_table(ROWS, form_of(format))) for format in (1, 2))
    footer = len(old) - 8 - int.from_bytes(old[-8:-4], "little")
    assert old != new and new[:footer] == old[:footer]
    assert encode_table(make_table(ROWS, form_of(2)).replace_schema_metadata(None)) == old
    assert Stated.of(read_table(old).schema) == Stated(1, None)
    assert Stated.of(read_table(new).schema) == Stated(2, {column.name: column.role for column in DECLARED})


@given(st.permutations(form_of(FORMAT).names))
def test_which_columns_are_scores_is_said_by_a_file_and_not_by_their_places(order):
    table = make_table(ROWS, form_of(FORMAT)).select(order)
    said = roles_in(table.schema)
    assert {name for name, role in said.items() if role is Role.SCORE} == {"clip_score", "taste_score", "rank_score"}
    assert {name for name, role in said.items() if role is Role.CARRIED} == {"topic", "mood_score"}
    assert (
        set(declared_in(table.schema)) == {"taste_score", "rank_score", "rejected_for"} and ranks_by(table.schema) == "rank_score"
    )


def test_of_the_first_format_their_places_tell_which_columns_are_scores():
    form = form_of(1)
    assert roles_in(form) == roles_in(form_of(2)) == roles(form.names)
    assert ranks_by(form) == "rank_score" and ranks_by(form_of(1, ())) == "clip_score"


def test_names_of_declared_columns_are_free_where_nothing_declares_them():
    form = schema({"rank_score": pa.string(), "rejected_for": pa.int64()}, None)
    assert {roles_in(form)[name] for name in ("rank_score", "rejected_for")} == {Role.CARRIED} and ranks_by(form) == "clip_score"
    content = encode_table(make_table([{"key": "000000-00000-0000", "rank_score": "high"}], form))
    assert read_table(content)["rank_score"].to_pylist() == ["high"]
    assert not {"rank_score", "rejected_for"} & reserved() and {column.name for column in always()} <= reserved()


@pytest.mark.parametrize("format", [1, FORMAT])
def test_a_column_that_a_copy_adds_is_known_as_declared_and_keeps_the_format(format):
    table = make_table(ROWS, form_of(format))
    made = with_declared(table, BY_NAME["duplicate_of"], pa.array(["000000-00000-0000"] * 3, pa.string()))
    again = read_table(encode_table(made))
    assert Stated.of(again.schema).format == format
    assert set(declared_in(again.schema)) == {"taste_score", "rank_score", "rejected_for", "duplicate_of"}
    assert roles_in(again.schema)["duplicate_of"] is Role.OUTCOME


@pytest.mark.parametrize("said", [b"", b"x", b"-1", b"0", b"1.5", b"\xff", b"9" * 5000])
def test_what_is_no_format_is_refused(said):
    with pytest.raises(ValueError, match="dataset format"):
        Stated.of(pa.schema([], {FORMAT_KEY: said}))


def test_a_later_format_is_refused_as_such():
    with pytest.raises(NewerFormatError, match=f"dataset format {FORMAT + 1}, this promptmill reads up to {FORMAT}"):
        Stated.of(pa.schema([], {FORMAT_KEY: str(FORMAT + 1).encode()}))


@pytest.mark.parametrize("said", [b"[]", b"1", b"{", b'{"a": "b"}', b'{"a": 1}', b"[" * 9999, b"\xff"])
def test_roles_that_nobody_writes_are_refused_in_a_line(said):
    with pytest.raises(ValueError, match="roles of its columns cannot be read"):
        Stated.of(pa.schema([], {FORMAT_KEY: b"2", ROLES_KEY: said}))


@given(st.dictionaries(st.sampled_from([*BY_NAME, "other"]), st.sampled_from(Role)))
def test_no_file_gives_a_column_of_ours_another_role(declared):
    said = roles([*BY_NAME, "other"], declared)
    assert all(said[column.name] is column.role for column in COLUMNS if column.need != "declared")
