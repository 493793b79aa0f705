import io
import random

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptmill.configs.columns import COLUMNS, FORMAT, REFERENCES
from promptmill.shards.tables import encode_table, make_table, read_table, schema

FORM = schema({"topic": pa.string()}, embedding=4)


def row(shard=0, number=0, candidate=0, **more):
    base = {"key": f"{shard:06d}-{number:05d}-{candidate:04d}", "id": str(number), "shard": shard, "candidate_index": candidate}
    return {**base, "selected": candidate == 0, "status": "kept" if candidate == 0 else "rejected", **more}


ROWS = [
    row(number=n, candidate=c, clip_score=20.5 + c, clip_embedding=np.ones(4, np.float16), topic="cats")
    for n in range(3)
    for c in range(4)
]


def write_table(rows, form):
    return encode_table(make_table(rows, form))


def test_the_same_rows_make_the_same_bytes_in_any_order():
    assert write_table(ROWS, FORM) == write_table(ROWS[::-1], FORM)


def test_a_table_put_together_of_pieces_makes_the_same_bytes():
    rows = [row(number=n, prompt="".join(random.Random(n).choices("abcdefgh ", k=600))) for n in range(6000)]
    whole = make_table(rows, FORM)
    pieces = pa.concat_tables([whole.slice(0, 700), whole.slice(700, 1), whole.slice(701)])
    assert encode_table(pieces) == encode_table(whole)


def test_rows_read_back_and_what_they_do_not_say_is_null():
    table = read_table(write_table(ROWS, FORM))
    assert table.schema.equals(FORM) and table.num_rows == 12
    first = table.to_pylist()[0]
    assert first["clip_score"] == 20.5 and first["error"] is None and first["clip_embedding"] == [1.0] * 4


def test_pandas_reads_it():
    frame = pandas.read_parquet(io.BytesIO(write_table(ROWS, FORM)))
    assert frame[frame.selected].key.tolist() == ["000000-00000-0000", "000000-00001-0000", "000000-00002-0000"]


def test_carried_columns_may_not_take_our_names():
    with pytest.raises(ValueError, match="named like promptmill's own: clip_score, image, key"):
        schema({"key": pa.string(), "clip_score": pa.float32(), "image": pa.string()}, None)


def test_references_of_a_dataset_that_began_before_pictures_of_faces_stay_as_they_were():
    declared = [column for column in COLUMNS if column.name == REFERENCES]
    hashes = {"sha256": "a", "mask_sha256": None, "embedding_sha256": None}
    rows = [row(references=[{"type": "style", "image": "a.png", "scale": 1.0, **hashes}])]
    earlier, now = (schema({}, None, declared=declared, format=format) for format in (3, FORMAT))
    assert [name for name in hashes if name not in earlier.field(REFERENCES).type.value_type.names] == ["embedding_sha256"]
    assert [name for name in hashes if name not in now.field(REFERENCES).type.value_type.names] == []
    for form in (earlier, now):
        (written,) = read_table(write_table(rows, form)).to_pylist()
        assert written[REFERENCES][0]["sha256"] == "a"


def test_a_column_that_nobody_planned_is_refused():
    with pytest.raises(ValueError, match="000000-00000-0000: no column surprise"):
        write_table([row(surprise=1)], FORM)


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[: len(c) // 2], lambda c: b""])
def test_a_damaged_file_says_so(damage):
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_table(damage(write_table(ROWS, FORM)))


def test_a_file_of_another_form_says_what_it_lacks():
    file = io.BytesIO()
    pq.write_table(pa.table({"key": ["a"]}), file)
    with pytest.raises(ValueError, match="lacks the columns id, candidate_index"):
        read_table(file.getvalue())
