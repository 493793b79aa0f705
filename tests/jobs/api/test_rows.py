"""Rows that a Python program holds make the requests, and the errors, that a manifest of them makes."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from promptmill.jobs.api.rows import JSONL, PARQUET, manifest_of, paths_of
from promptmill.manifests.rows import ManifestError
from promptmill.manifests.sources import read_rows

ROWS = [{"prompt": "a red circle", "seed": 3}, {"prompt": "ein blaues Dreieck, größer", "seed": 4}]


def read_again(rows, folder):
    name, content = manifest_of(rows)
    (folder / name).write_bytes(content)
    return [(row.number, row.values, row.broken) for row in read_rows([str(folder / name)])]


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        iter,
        pd.DataFrame,
        pl.DataFrame,
        pa.Table.from_pylist,
        pa.RecordBatch.from_pylist,
        lambda rows: pd.DataFrame(rows, index=[7, 9]),
    ],
)
def test_every_kind_of_rows_is_read_as_the_same_rows(kind, tmp_path):
    assert read_again(kind(ROWS), tmp_path) == [(number, row, None) for number, row in enumerate(ROWS, 1)]


@given(
    st.lists(
        st.dictionaries(
            st.text(min_size=1, max_size=5),
            st.none()
            | st.booleans()
            | st.integers(-(2**53), 2**53)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=9),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_rows_are_read_as_a_manifest_of_their_json_is(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = [(row.number, row.values, row.broken) for row in read_rows([str(folder / "m.jsonl")])]
    assert read_again(rows, folder) == said


def test_the_same_rows_make_the_same_bytes_whatever_their_numbers_are_made_with():
    plain = [{"prompt": "x", "seed": 3, "loras": [0.5, 1.0], "init_image": "a/b.png"}]
    assert manifest_of(plain) == manifest_of(
        [{"prompt": "x", "seed": np.int64(3), "loras": np.array([0.5, 1.0]), "init_image": Path("a/b.png")}]
    )
    assert manifest_of(plain)[0] == JSONL


def test_images_lie_in_the_cells_of_a_parquet_file_beside_those_that_are_paths(tmp_path):
    image = Image.new("RGB", (8, 4), "red")
    file = io.BytesIO()
    image.save(file, "PNG")
    rows = [
        {"prompt": "x", "init_image": image},
        {"prompt": "y", "init_image": file.getvalue(), "controls": [{"type": "canny", "image": image}]},
        {"prompt": "z", "init_image": "there.png"},
    ]
    name, content = manifest_of(rows)
    assert name == PARQUET
    (tmp_path / name).write_bytes(content)
    first, second, third = (row.values for row in read_rows([str(tmp_path / name)]))
    assert first["init_image"] == "rows.parquet::init_image/1" and second["init_image"] == "rows.parquet::init_image/2"
    assert second["controls"][0]["image"] == "rows.parquet::controls.0.image/2"
    assert third["init_image"] == "there.png"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (7, "rows are of the type int; give a list of dicts, a pandas or polars frame, an Arrow table, or the path of a manifest"),
        ({"prompt": "x"}, "rows are of the type dict; give a list of dicts"),
        ([{"prompt": "x"}, 3], "row 2: is of the type int, not a mapping of columns to values"),
        ([{"prompt": "x"}, {"prompt": {1}}], "row 2: prompt: is of the type set, which no manifest holds"),
        ([{1: "x"}], "row 1: the name of a column is 1, not a text"),
        ([{"prompt": b"", "size": 1}, {"prompt": b"", "size": "x"}], "row 2: size: is of the type str, others before are not"),
    ],
)
def test_what_is_no_row_is_one_line_with_its_number(rows, said):
    with pytest.raises(ManifestError) as error:
        manifest_of(rows)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize("rows", ["m.jsonl", Path("m.jsonl"), ["m.jsonl", Path("n.csv")]])
def test_paths_are_a_manifests(rows):
    assert paths_of(rows) == [str(path) for path in (rows if isinstance(rows, list) else [rows])]
    assert paths_of([]) is None and paths_of([{}]) is None
