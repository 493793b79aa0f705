"""Footers that contradict themselves; pyarrow ends its process over some, so each is read in one of its own."""

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptmill.configs.parquet_footers import check_chunks

# A column's statistics count its levels, of which one that is never null has one less.
OPTIONAL, REQUIRED = b"\x25\x02\x18\x03odd", b"\x25\x00\x18\x03odd"
READERS = {
    "a footer": "import pyarrow.parquet as pq; from promptmill.configs.parquet_footers import check_chunks as check; "
    "check(pq.read_metadata(file))",
    "a file of ours": "from promptmill.shards.bounded_parquet import read_parquet; read_parquet(open(file, 'rb').read())",
    "a manifest": "from promptmill.manifests.parquet import read_parquet; list(read_parquet(file, open(file, 'rb')))",
    "a cell": "from promptmill.manifests.cells import read_cell; read_cell(file, 'odd/1', 100)",
}
THREADS = """
import os, sys, threading
file = sys.argv[1]
import pyarrow.compute, pyarrow.parquet, promptmill.manifests.cells, promptmill.manifests.parquet, promptmill.shards.bounded_parquet
before = set(os.listdir("/proc/self/task"))
{}
print(len(set(os.listdir("/proc/self/task")) - before))
"""
CODE = """
import sys
file = sys.argv[1]
try:
    {}
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("reader", READERS)
def test_a_column_that_contradicts_its_statistics_raises_and_ends_no_process(tmp_path, reader, groups):
    made = io.BytesIO()
    pq.write_table(pa.table({"odd": ["a", None, "b"]}), made, row_group_size=3 // groups)
    head, found, tail = made.getvalue().rpartition(OPTIONAL)
    assert found
    (tmp_path / "m.parquet").write_bytes(head + REQUIRED + tail)
    command = [sys.executable, "-c", CODE.format(READERS[reader]), str(tmp_path / "m.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "histogram size mismatch" in done.stdout


@pytest.mark.parametrize("reader", READERS)
def test_no_thread_of_arrow_touches_what_is_read_since_python_may_end_before_the_thread_does(tmp_path, reader):
    # Chunks of several columns and row groups, far enough apart that Arrow would ask for each by itself.
    table = pa.table({name: [f"{name}{number}" * 100 for number in range(200)] for name in ("id", "prompt", "odd", "more")})
    table = table.set_column(2, "odd", table["odd"].cast(pa.binary()))
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=50, use_dictionary=False, compression="none")
    command = [sys.executable, "-c", THREADS.format(READERS[reader]), str(tmp_path / "m.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_a_footer_that_is_right_passes_and_no_data_is_read(rows):
    made = io.BytesIO()
    pq.write_table(pa.table({"a": pa.nulls(rows, pa.int64()), "b": [[1.5]] * rows}), made, row_group_size=10)
    check_chunks(pq.read_metadata(made))
    check_chunks(pq.read_metadata(made))
