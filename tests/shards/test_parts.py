import io

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.shards.parts import PartError, drop_broken, part_name, read_part, write_part
from promptmill.shards.storage import join, names
from promptmill.shards.tables import schema
from tests.shards.made import FINGERPRINT, FORM, candidate, refused

ROWS = [candidate(0, 0, 0, "kept"), candidate(0, 0, 1, "rejected"), candidate(0, 1, 0, "failed"), refused(0, 2)]
NAME = part_name("000000-00003")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    write_part(str(output), NAME, ROWS, FORM, FINGERPRINT)
    return (output / "parts" / NAME).read_bytes()


def test_a_part_is_named_like_its_unit():
    assert part_name("000012-00003") == "000012-00003.parquet"


def test_rows_and_images_read_back_in_the_order_of_keys(tmp_path):
    write_part(str(tmp_path), NAME, ROWS[::-1], FORM, FINGERPRINT)
    table = read_part(str(tmp_path), NAME, FORM, FINGERPRINT)
    assert table.column_names == [*FORM.names, "image"]
    assert table["key"].to_pylist() == [row["key"] for row in ROWS]
    assert table["image"].to_pylist() == [ROWS[0]["image"], None, None, None]
    assert table["clip_embedding"].to_pylist()[0] == ROWS[0]["clip_embedding"].tolist()
    assert table["clip_embedding"].to_pylist()[1] is None


def test_the_same_rows_make_the_same_bytes_in_any_order(tmp_path, whole):
    assert write_part(str(tmp_path), NAME, ROWS[::-1], FORM, FINGERPRINT) == len(whole)
    assert (tmp_path / "parts" / NAME).read_bytes() == whole


def test_others_read_it_as_parquet_and_images_are_not_compressed_again(whole):
    frame = pandas.read_parquet(io.BytesIO(whole))
    assert frame.key.tolist() == [row["key"] for row in ROWS]
    assert ROWS[0]["image"] in whole


@given(st.data())
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path_factory, whole, data):
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    _expect_damage(tmp_path_factory, bytes(damaged))


@given(st.data())
def test_a_truncated_part_is_found_wherever_it_ends(tmp_path_factory, whole, data):
    _expect_damage(tmp_path_factory, whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_bytes_behind_the_end_are_found(tmp_path_factory, whole):
    _expect_damage(tmp_path_factory, whole + b"\0")


def _expect_damage(tmp_path_factory, content):
    output = tmp_path_factory.getbasetemp() / "damaged"
    (output / "parts").mkdir(parents=True, exist_ok=True)
    (output / "parts" / NAME).write_bytes(content)
    with pytest.raises(PartError, match=f"{NAME}: truncated or altered"):
        read_part(str(output), NAME, FORM, FINGERPRINT)


def test_a_parquet_that_somebody_else_wrote_is_no_part(tmp_path_factory):
    file = io.BytesIO()
    pq.write_table(pa.table({"key": ["a"]}), file)
    _expect_damage(tmp_path_factory, file.getvalue())


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (schema({"topic": pa.string(), "weight": pa.float64()}, 4), "has the column tags too"),
        (schema({"topic": pa.string(), "weight": pa.int64(), "tags": pa.list_(pa.string())}, 4), "weight is double, not int64"),
        (schema({"topic": pa.string(), "weight": pa.float64(), "tags": pa.list_(pa.string())}, 8), "clip_embedding is fixed"),
        (schema({**{n: FORM.field(n).type for n in ("topic", "weight", "tags")}, "new": pa.string()}, 4), "lacks the column new"),
        (schema({n: FORM.field(n).type for n in ("tags", "topic", "weight")}, 4), "has its columns in another order"),
    ],
)
def test_a_part_of_another_plan_is_refused_and_says_why(tmp_path, form, says):
    write_part(str(tmp_path), NAME, ROWS, FORM, FINGERPRINT)
    with pytest.raises(PartError, match=rf"{NAME}: {says}.*; it is of another plan"):
        read_part(str(tmp_path), NAME, form, FINGERPRINT)


def test_a_part_of_another_plan_is_refused_though_its_columns_are_the_same(tmp_path):
    write_part(str(tmp_path), NAME, ROWS, FORM, "e" * 64)
    with pytest.raises(PartError, match=rf"{NAME}: is of another plan, {'e' * 16}; this one is {'f' * 16}$"):
        read_part(str(tmp_path), NAME, FORM, FINGERPRINT)


def test_what_a_part_says_of_its_plan_does_not_leave_it(tmp_path):
    write_part(str(tmp_path), NAME, ROWS, FORM, FINGERPRINT)
    assert read_part(str(tmp_path), NAME, FORM, FINGERPRINT).schema.metadata is None


def test_only_broken_parts_and_those_of_another_plan_are_dropped(tmp_path):
    parts = [part_name(f"000000-{unit:05d}") for unit in range(5)]
    for name in parts[:4]:
        write_part(str(tmp_path), name, ROWS, FORM, "e" * 64 if name == parts[2] else FINGERPRINT)
    broken = tmp_path / "parts" / parts[1]
    broken.write_bytes(broken.read_bytes()[:-1])
    found = drop_broken(str(tmp_path), parts, FORM, FINGERPRINT)
    assert [str(error).split("parts/")[1].split(":")[0] for error in found] == [parts[1], parts[2]]
    assert list(names(join(str(tmp_path), "parts"))) == [parts[0], parts[3]]


def test_a_missing_part_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_part(str(tmp_path), NAME, FORM, FINGERPRINT)


def test_a_column_that_nobody_planned_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no column surprise"):
        write_part(str(tmp_path), NAME, [{**ROWS[0], "surprise": 1}], FORM, FINGERPRINT)


def test_many_large_images_read_back(tmp_path):
    rows = [{**refused(0, row), "image": np.full(100_000, row, np.uint8).tobytes()} for row in range(100)]
    write_part(str(tmp_path), NAME, rows, FORM, FINGERPRINT)
    assert read_part(str(tmp_path), NAME, FORM, FINGERPRINT)["image"].to_pylist() == [row["image"] for row in rows]


def test_on_s3(s3_bucket):
    output = join(s3_bucket, "out")
    write_part(output, NAME, ROWS, FORM, FINGERPRINT)
    assert read_part(output, NAME, FORM, FINGERPRINT)["image"].to_pylist()[0] == ROWS[0]["image"]
    with pytest.raises(FileNotFoundError):
        read_part(output, part_name("000000-00004"), FORM, FINGERPRINT)
