"""Reads Parquet files that a stranger may have written: what a file would become in memory is known before it is decompressed.

A few kilobytes of Parquet can hold gigabytes: zeros compress to nothing, a dictionary's one long text can stand in every row, and a
run of a million nulls takes two bytes. What promptmill writes holds no such thing, so a file that does is refused. A file is read
row group by row group, and no cell may be larger than one that a manifest can have asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from promptmill.configs.errors import shown
from promptmill.configs.parquet_footers import IN_THIS_THREAD, check_chunks
from promptmill.shards.page_headers import DICTIONARY, Page, pages

MiB = 2**20
MOST_DECODED = 256 * MiB  # bytes of a table in memory, and besides
TIMES_ITS_SIZE = 32  # so many times the file's own size: text of a thousand like rows compresses well
# Bytes of a cell. A manifest's may have 16 MiB, and JSON writes a control character of it as six.
MOST_CELL = 96 * MiB
RATIO = 200  # bytes that a page larger than such a cell may hold for each that it takes in the file, as with manifests
SPARE_ROWS = 10_000  # rows that a file may have, and one more for each of its bytes
MOST_COLUMNS = 3000  # leaves; manifests may have a thousand columns of their own
ENCODINGS = frozenset({0, 2, 3, 4, 8})  # PLAIN, PLAIN_DICTIONARY, RLE, BIT_PACKED, RLE_DICTIONARY: all that Arrow writes unasked
OPEN = {**IN_THIS_THREAD, "thrift_string_size_limit": 16 * MiB, "thrift_container_size_limit": 1_000_000}  # of the footer
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}  # bytes of a decoded value
LEVELS = 4  # bytes a value, of what tells nulls and lists apart
PREFIX = 4  # bytes a text, of what tells its length


def read_parquet(
    content: bytes,
    columns: Sequence[str] | None = None,
    cells: Mapping[str, int] = MappingProxyType({}),
) -> pa.Table:
    """Read a whole Parquet file, or some of its columns, as `pyarrow.parquet.read_table` does, its texts checked to be UTF-8.

    Args:
        content: The bytes of the whole file.
        columns: Names of the columns to read; None for all.
        cells: By column, the bytes that one of its cells may have where they are not `MOST_CELL`.

    Raises:
        ValueError: The file cannot be read, has a cell that is too large, or would become larger in memory than a file of this size
            of ours may. The message is one line.
    """
    try:
        return _read(content, columns, cells)
    except (pa.ArrowException, OSError, MemoryError, OverflowError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"cannot be read as Parquet: {reason}") from None


def _read(content: bytes, columns: Sequence[str] | None, cells: Mapping[str, int]) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(content), **OPEN)
    try:
        most = MOST_DECODED + TIMES_ITS_SIZE * len(content)
        chunks = _looked_at(file, content, columns, most, cells)
        names = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        # What a dictionary unfolds to is only known of its indices: where it may be too much, it is unfolded once it is counted.
        folded = sorted({chunk.path for chunk in chunks if chunk.folded}) if sum(chunk.bound for chunk in chunks) > most else []
        taken = sum(chunk.bound for chunk in chunks if chunk.path not in folded)
        nothing = file.schema_arrow.empty_table()
        tables = [nothing if names is None else nothing.select(list(dict.fromkeys(names)))]
        with pq.ParquetFile(pa.BufferReader(content), read_dictionary=folded, **OPEN) as again:
            for group in range(file.metadata.num_row_groups):
                read = again.read_row_group(group, columns=names, use_threads=False)
                _check_cells(read, group, cells)
                if folded:
                    taken += sum(_unfolded(chunk) for column in read.columns for chunk in column.chunks)
                    _at_most(taken, most)
                    read = read.cast(tables[0].schema)
                tables.append(read)
        table = pa.concat_tables(tables[1:] or tables)
    finally:
        file.close()
    table.validate(full=True)
    return table


def _check_cells(table: pa.Table, group: int, cells: Mapping[str, int]) -> None:
    """Raise ValueError where a cell of a row group is larger than its column allows."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        largest = max((int(sizes.max()) for chunk in column.chunks if (sizes := _sizes(chunk)).size), default=0)
        _cell_at_most(largest, group, name, cells)


def _cell_at_most(size: int, group: int, name: str, cells: Mapping[str, int]) -> None:
    most = cells.get(name, MOST_CELL)
    if size > most:
        sizes = f"a cell of {size / MiB:,.0f} MiB or more, and {most / MiB:,.0f} MiB are the most"
        raise ValueError(f"row group {group}, column {shown(name)}: has {sizes}")


def _sizes(array: pa.Array) -> np.ndarray:
    """Return the bytes of each cell of an array, (N,) int64; nothing for types whose cells are all of one small size."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return pc.fill_null(lengths.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    if any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)):
        return pc.fill_null(pc.binary_length(array).cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    if pa.types.is_struct(kind):
        found = [sizes for sizes in (_sizes(field) for field in array.flatten()) if sizes.size == len(array)]
        return np.sum(found, axis=0) if found else np.empty(0, np.int64)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        ends = array.offsets.to_numpy()
        values = array.values
        inner = _sizes(values)
        if inner.size != len(values):
            inner = np.full(len(values), _width_of(kind.value_type), np.int64)
        return np.diff(np.concatenate(([0], np.cumsum(inner)))[ends])
    return np.empty(0, np.int64)


def _width_of(kind: pa.DataType) -> int:
    """Return about how many bytes a value takes that is no text: a byte at least, and 8 where its type does not tell."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 8


class _Chunk:
    """Bounds the memory that a column's part in one row group may take.

    Attributes:
        path: The leaf's path, as Parquet names it.
        bound: The most bytes that the chunk may take.
        folded: Whether this bound is of texts in a dictionary, and so may be far above what they are.
    """

    def __init__(self, path: str, found: Sequence[Page], width: int | None):
        values = sum(page.values for page in found if page.kind != DICTIONARY)
        dictionary = max((page.size for page in found if page.kind == DICTIONARY), default=0)
        plain = sum(page.size for page in found)
        self.path, self.folded = path, width is None and dictionary > 0
        self.bound = plain + values * (LEVELS + (width or 8)) + (values * dictionary if self.folded else 0)


def _looked_at(
    file: pq.ParquetFile, content: bytes, columns: Sequence[str] | None, most: int, cells: Mapping[str, int]
) -> list[_Chunk]:
    """Read the headers of all pages that will be decoded, and return the bounds of their column chunks.

    Raises:
        ValueError: The file says of itself what no file of ours does.
    """
    metadata, schema = file.metadata, file.schema
    if metadata.num_rows > SPARE_ROWS + len(content):
        raise ValueError(f"says that it has {metadata.num_rows:,} rows, in {len(content):,} bytes")
    if len(schema) > MOST_COLUMNS:
        raise ValueError(f"has {len(schema):,} columns, of {MOST_COLUMNS:,} at most")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows or min((group.num_rows for group in groups), default=0) < 0:
        raise ValueError(f"its row groups do not have {metadata.num_rows:,} rows")
    check_chunks(metadata)
    wanted = None if columns is None else set(columns)
    _at_most(metadata.num_rows * sum(_padding(field.type) for field in file.schema_arrow), most)
    chunks, whole = [], memoryview(content)
    for number, group in enumerate(groups):
        if group.num_columns != len(schema):
            raise ValueError(f"a row group has {group.num_columns:,} columns of {len(schema):,}")
        for place in range(group.num_columns):
            column, leaf = group.column(place), schema.column(place)
            if wanted is not None and not _is_of(leaf.path, wanted):
                continue
            found = list(_pages_of(column, whole))
            strange = sorted({page.encoding for page in found} - ENCODINGS)
            if strange:
                raise ValueError(f"{shown(leaf.path)}: is encoded in a way that promptmill does not use, number {strange[0]}")
            for page in found:
                if page.size > max(MOST_CELL, RATIO * page.compressed):
                    held = f"holds {page.size / MiB:,.0f} MiB in {page.compressed:,} bytes"
                    raise ValueError(
                        f"row group {number}, column {shown(leaf.path)}: {held}, as nothing does that promptmill writes"
                    )
            if _width(leaf) is None and not leaf.max_repetition_level:
                # Of so few values, one at least is as large as all of them are on average.
                least = max((page.size // max(1, page.values) for page in found), default=0)
                _cell_at_most(least - LEVELS - PREFIX, number, leaf.path.split(".")[0], cells)
            chunk = _Chunk(leaf.path, found, _width(leaf))
            _at_most(sum(page.size for page in found), most)
            chunks.append(chunk)
    _at_most(sum(chunk.bound for chunk in chunks if not chunk.folded), most)
    return chunks


def _at_most(bytes_: int, most: int) -> None:
    if bytes_ > most:
        raise ValueError(f"would take {bytes_ / MiB:,.0f} MiB of memory, and a file of this size {most / MiB:,.0f} MiB at most")


def _is_of(path: str, columns: set[str]) -> bool:
    # A column's own name may have dots.
    return path in columns or any(path.startswith(f"{name}.") for name in columns)


def _pages_of(column: pq.ColumnChunkMetaData, content: memoryview) -> Iterator[Page]:
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    yield from pages(content, start, start + column.total_compressed_size, column.num_values)


def _width(leaf: pq.ColumnSchema) -> int | None:
    """Return the bytes of one decoded value of a leaf; None for texts, which are as long as they are."""
    if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return int(leaf.length)
    return WIDTHS.get(leaf.physical_type)


def _padding(kind: pa.DataType) -> int:
    """Return the bytes that a null of a type takes: of lists of a fixed length, as many as of any other row."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * max(8, _padding(kind.value_type))
    return sum(_padding(kind.field(place).type) for place in range(kind.num_fields)) if kind.num_fields else 0


def _unfolded(array: pa.Array) -> int:
    """Return the bytes that the texts of an array take once they stand in each row."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(_unfolded(array.field(place)) for place in range(array.type.num_fields))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return _unfolded(array.values)
    return 0
