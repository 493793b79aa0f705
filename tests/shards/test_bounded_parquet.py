"""Parquet files that would take far more memory than a file of their size may."""

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.manifests.roots import MAX_BYTES
from promptmill.manifests.rows import MAX_ROW
from promptmill.shards.bounded_parquet import MOST_CELL, MiB, read_parquet
from promptmill.shards.parts import MOST_IMAGE

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
    "cells": (lambda: pa.table({"key": ["a" * HUGE] * 2}), {"use_dictionary": False}, "row group 0, column key: holds 300 MiB"),
    "a dictionary": (lambda: pa.table({"key": ["b" * 500_000] * 3000}), {}, "MiB of memory"),
    "a nested dictionary": (lambda: pa.table({"key": [[{"image": "b" * 500_000}]] * 3000}), {}, "MiB of memory"),
    "a list": (lambda: pa.table({"key": [[{"image": "b" * 500_000}] * 3000]}), {}, "row group 0, column key: has a cell of 1,431"),
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
    for columns in (None, ["a.b", "half"], ["flag", "nested", "a.b"]):
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


# What reads one file and says by how many MiB the process has grown.
READING = """
import resource, sys
from pathlib import Path
from promptmill.shards.bounded_parquet import read_parquet
content = Path(sys.argv[1]).read_bytes()
# Of this program alone: the other figure begins with that of the process that started it.
peak = lambda: int([line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")][0].split()[1])
before = peak()
try:
    read_parquet(content)
    print("read")
except ValueError as error:
    print(error)
print((peak() - before) // 1024)
"""


def read_apart(file, content):
    """Return what a process of its own says of a file, and the MiB that it took to say so."""
    file.write_bytes(content)
    done = subprocess.run([sys.executable, "-c", READING, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, grown = done.stdout.splitlines()
    return said, int(grown)


def test_a_page_that_is_larger_than_the_footer_says_takes_no_memory(tmp_path):
    # Three cells of 150 MB, of which the footer says nothing true: its sizes are those of a file with three short cells.
    content = written(pa.table({"key": ["a" * HUGE] * 3}), use_dictionary=False)
    metadata = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    for number in (metadata.total_byte_size, metadata.column(0).total_uncompressed_size):
        content = content.replace(_varint(2 * number), _varint(2 * 1)[:-1] + b"\x82\x80\x80\x80\x00"[: len(_varint(2 * number))])
    assert pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).total_byte_size == 1
    said, grown = read_apart(tmp_path / "a.parquet", content)
    assert said.startswith("row group 0, column key: holds 450 MiB in ") and grown < 200


# Made where they are wanted: each takes half a second, and every process that collects tests would make all of them.
FORGED = {
    "three like cells, once in a dictionary": lambda long: ([long] * 3, {}),
    "one cell": lambda long: ([long], {}),
    "one of twenty cells": lambda long: ([long, *map(str, range(19))], {}),
    "one of twenty lists": lambda long: ([[long], *([str(number)] for number in range(19))], {}),
    "a second row group": lambda long: (["", long], {"row_group_size": 1}),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_cell_that_no_manifest_can_have_asked_for_is_refused_by_its_row_group_and_column_before_it_takes_memory(tmp_path, name):
    cells, options = FORGED[name]("a" * 200_000_000)
    content = written(pa.table({"key": cells}), **options)
    assert len(content) < 20_000
    said, grown = read_apart(tmp_path / "a.parquet", content)
    group = options.get("row_group_size", 0)
    assert said.startswith(f"row group {group}, column key") and "191 MiB" in said
    assert grown < 100


def test_of_row_groups_that_are_too_much_together_no_more_is_in_memory_than_may_be(tmp_path):
    # Each may be in a file, but not sixteen of them in one of this size.
    content = written(pa.table({"key": ["a" * 90_000_000] * 16}), row_group_size=1)
    said, grown = read_apart(tmp_path / "a.parquet", content)
    assert "MiB of memory" in said
    assert grown < 1000


def noise(size: int) -> str:
    """Return text that compresses by little, so that its size alone is what is wrong with it."""
    return np.random.default_rng(size).integers(0, 2**62, size // 16 + 1, np.uint64).tobytes().hex()[:size]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dictionary", [False, True])
def test_cells_are_held_to_the_limit_of_their_column(nested, dictionary):
    text = noise(4_000)
    cells = [[text] if nested else text, None, ["x"] if nested else "x"] * 9
    content = written(pa.table({"a": cells, "b": cells}), row_group_size=10, use_dictionary=dictionary)
    assert read_parquet(content, cells={"a": 4_000, "b": 4_000}).to_pydict() == {"a": cells, "b": cells}
    for names in (None, ["b"]):
        with pytest.raises(ValueError, match="row group 0, column b: has a cell"):
            read_parquet(content, names, cells={"b": 3_999})
    assert read_parquet(content, ["a"], cells={"b": 3_999}).num_rows == 27


def test_what_a_manifest_allows_is_within_the_limit_of_a_cell():
    # JSON writes a control character as six, and UTF-8 a character as four bytes at most.
    assert MOST_CELL >= 6 * MAX_ROW
    assert MOST_IMAGE >= MAX_BYTES


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
