"""Parquet files that would take far more memory than a file of their size may."""

import io
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.shards.bounded_parquet import MiB, read_parquet

HUGE = 150 * MiB


def written(table: pa.Table, **options) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **{"compression": "zstd", **options})
    return file.getvalue()


NESTED = pa.list_(pa.struct([("type", pa.string()), ("image", pa.string())]))
TABLE = pa.table(
    {
        "a.b": ["x", None, "x" * 300, ""],
        "nested": pa.array([[{"type": "t", "image": None}] * 3, None, [], [None]], NESTED),
        "half": pa.array([[0.5, 1.0], None, [2.0, 3.0], [0.0, 0.0]], pa.list_(pa.float16(), 2)),
        "flag": [True, None, False, True],
    }
).replace_schema_metadata({"a": "b"})

BOMBS = {
    "cells": (lambda: pa.table({"key": ["a" * HUGE] * 2}), {"use_dictionary": False}, "MiB of memory"),
    "a dictionary": (lambda: pa.table({"key": ["b" * 500_000] * 3000}), {}, "MiB of memory"),
    "a nested dictionary": (lambda: pa.table({"key": [[{"image": "b" * 500_000}] * 3000]}), {}, "MiB of memory"),
    "nulls": (lambda: pa.table({"key": pa.nulls(10_000_000, pa.string())}), {}, "10,000,000 rows"),
    "nulls of lists of one length": (lambda: pa.table({"key": pa.nulls(9, pa.list_(pa.int8(), 10**7))}), {}, "MiB of memory"),
    "lists": (
        lambda: pa.table({"key": pa.ListArray.from_arrays([0, 40_000_000], pa.nulls(40_000_000, pa.int8()))}),
        {},
        "MiB of memory",
    ),
    "prefixes": (
        lambda: pa.table({"key": ["c" * 9_000 + str(i) for i in range(9_000)]}),
        {"use_dictionary": False, "column_encoding": {"key": "DELTA_BYTE_ARRAY"}},
        "encoded in a way",
    ),
}


@pytest.mark.parametrize("options", [{}, {"data_page_version": "2.0"}, {"row_group_size": 2}, {"compression": "none"}])
def test_what_is_within_bounds_is_read_as_arrow_reads_it(options):
    content = written(TABLE, **options)
    for columns in (None, ["a.b", "half"]):
        table = read_parquet(content, columns)
        assert table.equals(pq.read_table(io.BytesIO(content), columns=columns), check_metadata=True)


def test_many_rows_of_one_long_text_are_read_as_arrow_reads_them():
    # The dictionary times its rows would be 4 GB; what the rows hold is a few megabytes.
    texts = [f"{number} " + "word " * 9 for number in range(9_000)]
    some = pa.table({"key": texts * 8, "nested": [[{"type": text, "image": None}] for text in texts] * 8})
    content = written(some)
    assert read_parquet(content).equals(some.cast(pq.read_schema(io.BytesIO(content))))


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_becomes_gigabytes_is_refused_in_a_line(name):
    make, options, said = BOMBS[name]
    content = written(make(), **options)
    assert len(content) < MiB
    with pytest.raises(ValueError, match=said) as raised:
        read_parquet(content)
    assert "\n" not in str(raised.value)


def test_a_page_that_is_larger_than_the_footer_says_takes_no_memory(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from shards.bounded_parquet import read_parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_parquet(Path(sys.argv[1]).read_bytes())
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    # Three cells of 150 MB, of which the footer says nothing true: its sizes are those of a file with three short cells.
    content = written(pa.table({"key": ["a" * HUGE] * 3}), use_dictionary=False)
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    for number in (metadata.total_byte_size, metadata.column(0).total_uncompressed_size):
        content = content.replace(_varint(2 * number), _varint(2 * 1)[:-1] + b"\x82\x80\x80\x80\x00"[: len(_varint(2 * number))])
    assert pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).total_byte_size == 1
    file = tmp_path / "a.parquet"
    file.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    assert "MiB of memory" in done.stdout and int(done.stdout.splitlines()[-1]) < 200


def _varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_file_is_read_or_refused_in_a_line(damage):
    content = bytearray(written(TABLE))
    for at, byte in damage:
        content[at % len(content)] = byte
    said = "read"
    try:
        read_parquet(bytes(content))
    except ValueError as error:
        said = str(error)
    assert said and "\n" not in said
