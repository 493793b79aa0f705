"""Reads images in the cells of a Parquet file, as Hugging Face's datasets keep images: `{bytes, path}`, or bytes alone.

Such an image is named `file.parquet::column/row`, the row counted from 1: `m.parquet::init_image/7`,
`m.parquet::controls.0.image/7`.
"""

import functools
from pathlib import PurePosixPath
from typing import Any

import pyarrow
import pyarrow.parquet

from promptmill.configs.parquet_footers import IN_THIS_THREAD, check_chunks
from promptmill.manifests.files import open_file, system_of
from promptmill.manifests.roots import IN_FILE

PLAIN_IMAGE = "image"  # as datasets call the column; the row says what its image is for
IMAGE_COLUMNS = ("init_image", "mask_image", "control_image", PLAIN_IMAGE)
MOST_BYTES = 2**30  # of a row group's images, which are read together
GROUPS = 2  # kept


def is_image(kind: pyarrow.DataType) -> bool:
    """Return whether a column's type is that of images: a struct of bytes and perhaps a path, or bytes."""
    if pyarrow.types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        return "bytes" in names and names <= {"bytes", "path"} and _is_bytes(kind.field("bytes").type)
    return _is_bytes(kind)


def _is_bytes(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def address(file: str, column: str, number: int | None) -> str:
    """Return the path of an image in a cell of a manifest, as a row names it; without a number, the beginning of all such paths."""
    return f"{PurePosixPath(file).name}{IN_FILE}{column}{'' if number is None else f'/{number}'}"


def is_parquet(file: str) -> bool:
    """Return whether a file's ending is that of Parquet."""
    return file.lower().endswith(".parquet")


def read_cell(file: str, cell: str, most: int) -> bytes:
    """Read the image in a cell.

    Args:
        file: A path or an fsspec URI of a Parquet file.
        cell: `column/row`, as in the module's docstring.
        most: Bytes returned, at most.

    Raises:
        KeyError: There is no such cell, or no bytes in the cell.
        ValueError: The row group's images are too large to be read together.
        OSError, pyarrow.ArrowException: The file cannot be read.
    """
    column, _, row = cell.rpartition("/")
    if not row.isdecimal() or not row.isascii() or len(row) > 18 or int(row) < 1:
        raise KeyError(f"no cell {cell}; a cell is column/row")
    root, *inner = column.split(".")
    system, path = system_of(file)
    version = system.ukey(path)
    starts = _starts(file, version)
    group = next((g for g, end in enumerate(starts[1:]) if int(row) <= end), None)
    if group is None:
        raise KeyError(f"no row {row}")
    value: Any = _column(file, version, group, root)[int(row) - 1 - starts[group]].as_py()
    for part in inner:
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, dict) else None
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise KeyError(f"no bytes in {cell}")
    return value[:most]


@functools.lru_cache(64)
def _starts(file: str, version: str) -> tuple[int, ...]:
    """Return the number of rows before each row group of a file, and the number of rows in all."""
    with open_file(file) as stream:
        facts = pyarrow.parquet.read_metadata(stream)
    starts = [0]
    for group in range(facts.num_row_groups):
        starts.append(starts[-1] + facts.row_group(group).num_rows)
    return tuple(starts)


@functools.lru_cache(GROUPS)
def _column(file: str, version: str, group: int, root: str) -> pyarrow.ChunkedArray:
    """Return a row group's cells of one column; rows that are read in order read each row group once."""
    with open_file(file) as stream:
        table = pyarrow.parquet.ParquetFile(stream, **IN_THIS_THREAD)
        check_chunks(table.metadata)
        facts = table.metadata.row_group(group)
        # By place, as Arrow reads the chunks: a damaged footer's chunk may say of itself that it is another column.
        places = [place for place in range(len(table.schema)) if table.schema.column(place).path.split(".")[0] == root]
        claimed = sum(facts.column(place).total_uncompressed_size for place in places if place < facts.num_columns)
        if claimed > MOST_BYTES:
            raise ValueError(f"row group {group} holds {claimed:,} bytes of {root}; write row groups of fewer rows")
        found = table.read_row_group(group, columns=[root], use_threads=False)
        if root not in found.column_names:
            raise KeyError(f"no column {root}")
        return found[root]
