import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.parameters import Defaults
from promptmill.manifests.carried import MAX_COLUMNS, Types, arrow_types, cast, plain
from promptmill.manifests.checking import check_rows
from promptmill.manifests.rows import ManifestError
from promptmill.manifests.rules import Rules
from promptmill.shards.tables import encode_table, make_table, schema

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=5)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["one", "two", "three", "ünï"]), VALUES, max_size=4), max_size=8)


def types_of(rows):
    types = Types()
    for row in rows:
        assert types.see(row) == []
    return types


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, False], "bool"),
        ([1, -(2**63), 2**63 - 1], "int64"),
        ([1, 2.5], "float64"),
        ([float("nan"), 1], "float64"),
        (["a"], "string"),
        ([2**63], "string"),
        ([2**64, 1.5], "string"),
        ([True, 1], "string"),
        (["a", 1, None], "string"),
        ([None], "string"),
        ([[1], 1], "json"),
        ([{"a": 1}, "a"], "json"),
        ([datetime(2020, 1, 2), b"x", Decimal("1.50")], "string"),
    ],
)
def test_the_type_of_a_column_follows_from_all_of_its_values(values, kind):
    for ordered in (values, values[::-1]):
        assert types_of({"c": value} for value in ordered).result() == {"c": kind}


@given(ROWS, st.randoms(use_true_random=False))
def test_types_and_their_order_do_not_depend_on_the_rows_order(rows, random):
    whole = types_of(rows).result()
    assert list(whole) == sorted(whole)
    shuffled = [*rows]
    random.shuffle(shuffled)
    assert list(types_of(shuffled).result().items()) == list(whole.items())


@given(ROWS)
def test_every_value_is_kept_in_its_columns_type_and_goes_into_the_output(rows):
    kinds = types_of(rows).result()
    form = schema(arrow_types(kinds), embedding=None)
    written = [
        {"shard": 0, "key": f"{i:05d}", **{name: cast(row.get(name), kind) for name, kind in kinds.items()}}
        for i, row in enumerate(rows)
    ]
    table = pq.read_table(pa.BufferReader(encode_table(make_table(written, form)))) if rows else []
    for row, back in zip(rows, table.to_pylist() if rows else [], strict=True):
        for name, kind in kinds.items():
            value = row.get(name)
            if value is None:
                assert back[name] is None
            elif kind == "json":
                assert json.loads(back[name]) == value
            elif kind == "string":
                assert back[name] == (value if isinstance(value, str) else json.dumps(value))
            else:
                assert back[name] == (float(value) if kind == "float64" else value)
                assert type(back[name]) is {"bool": bool, "int64": int, "float64": float}[kind]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2020, 1, 2, 3, 4, 5, 6, UTC), "2020-01-02T03:04:05.000006+00:00"),
        (date(2020, 1, 2), "2020-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(days=1, seconds=2), "1 day, 0:00:02"),
        (Decimal("1.50"), "1.50"),
        (b"\x00\xff", "00ff"),
        (2**64, "18446744073709551616"),
        (True, "true"),
        (1.0, "1.0"),
        (None, None),
    ],
)
def test_what_is_no_string_has_one_form_as_a_string(value, text):
    assert cast(value, "string") == text == cast(plain(value), "string")


def test_what_parquet_has_and_json_has_not_is_carried_as_text(tmp_path):
    when = datetime(2020, 1, 2, 3, 4, 5)
    table = pa.table(
        {
            "prompt": ["x"],
            "when": pa.array([1_577_934_245_000_000_001], pa.timestamp("ns")),
            "zoned": pa.array([when], pa.timestamp("us", "UTC")),
            "took": pa.array([1_000_000_001], pa.duration("ns")),
            "price": pa.array([Decimal("1.50")], pa.decimal128(5, 2)),
            "raw": pa.array([b"\x01\x02"], pa.binary()),
            "tags": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            "nested": pa.array([{"at": [date(2020, 1, 2)], "raw": b"\xff"}]),
            "half": pa.array([0.5], pa.float16()),
            "kind": pa.array(["cat"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    (checked,) = check_rows([str(tmp_path / "m.parquet")], Rules(Defaults()))
    assert checked.request.carried == {
        "when": "2020-01-02T03:04:05",
        "zoned": "2020-01-02T03:04:05+00:00",
        "took": "0:00:01",
        "price": "1.50",
        "raw": "0102",
        "tags": [["a", 1]],
        "nested": {"at": ["2020-01-02"], "raw": "ff"},
        "half": 0.5,
        "kind": "cat",
    }
    kinds = types_of([checked.request.carried]).result()
    assert {name for name, kind in kinds.items() if kind == "json"} == {"tags", "nested"}


def test_a_column_named_like_one_of_the_outputs_is_a_problem_of_its_row_and_leaves_no_trace():
    types = Types(reserved={"status", "key"})
    assert types.see({"status": 1, "key": 2, "fine": 3}) == [
        "key: the output has a column of its own with this name; rename it",
        "status: the output has a column of its own with this name; rename it",
    ]
    assert types.see({"fine": "a"}) == []
    assert types.result() == {"fine": "string"}


@pytest.mark.parametrize("name", ["", "x" * 10_000])
def test_a_column_whose_name_is_no_name_is_a_problem(name):
    (problem,) = Types().see({name: 1})
    assert f"this one has {len(name)}" in problem and len(problem) < 200


def test_columns_are_bounded_and_so_is_the_line_that_says_so():
    types = Types()
    for i in range(MAX_COLUMNS):
        types.see({f"column {i}": 1})
    types.see({"column 7": "again"})
    with pytest.raises(ManifestError, match=r"more than 1,000 columns of its own \(column 0, ") as caught:
        types.see({"one more": 1})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_types_take_memory_by_the_column():
    types = Types()
    for i in range(10_000):
        types.see({"a": i, "b": str(i)})
    assert len(types._seen) == 2


def test_endless_nesting_is_a_problem_of_its_row(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"prompt": "x", "deep": ' + "[" * 100 + "]" * 100 + "}\n" + '{"prompt": "x", "deep": [[1]]}')
    broken, fine = check_rows([str(tmp_path / "m.jsonl")], Rules(Defaults()))
    assert broken.problems == ("deep: more than 50 lists in lists",)
    assert fine.request.carried == {"deep": [[1]]}
