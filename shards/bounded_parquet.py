"""Reads Parquet files that a stranger may have written: what a file would become in memory is known before it is decompressed.

A few kilobytes of Parquet can hold gigabytes: zeros compress to nothing, a dictionary's one long text can stand in every row, and a
run of a million nulls takes two bytes. What promptmill writes holds no such thing, so a file is refused where it does.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from promptmill.configs.parquet_footers import check_chunks
from promptmill.shards.page_headers import DICTIONARY, Page, pages

MiB = 2**20
MOST_DECODED = 256 * MiB  # bytes of a table in memory, and besides
TIMES_ITS_SIZE = 32  # so many times the file's own size: text of a thousand like rows compresses well
SPARE_ROWS = 10_000  # rows that a file may have, and one more for each of its bytes
MOST_COLUMNS = 3000  # leaves; manifests may have a thousand columns of their own
ENCODINGS = frozenset({0, 2, 3, 4, 8})  # PLAIN, PLAIN_DICTIONARY, RLE, BIT_PACKED, RLE_DICTIONARY: all that Arrow writes unasked
OPEN = {"thrift_string_size_limit": 16 * MiB, "thrift_container_size_limit": 1_000_000}  # of the footer
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}  # bytes of a decoded value
LEVELS = 4  # bytes a value, of what tells nulls and lists apart


def read_parquet(content: bytes, columns: Sequence[str] | None = None, use_threads: bool = True) -> pa.Table:
    """Read a whole Parquet file, or some of its columns, as `pyarrow.parquet.read_table` does, its texts checked to be UTF-8.

    Raises:
        ValueError: It cannot be read, or would become larger in memory than a file of this size of ours may.
    """
    try:
        return _read(content, columns, use_threads)
    except (pa.ArrowException, OSError, MemoryError, OverflowError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"cannot be read as Parquet: {reason}") from None


def _read(content: bytes, columns: Sequence[str] | None, use_threads: bool) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(content), **OPEN)
    try:
        most = MOST_DECODED + TIMES_ITS_SIZE * len(content)
        chunks = _looked_at(file, content, columns, most)
        names = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        # What a dictionary unfolds to is only known of its indices: where it may be too much, it is unfolded once it is counted.
        folded = sorted({chunk.path for chunk in chunks if chunk.folded}) if sum(chunk.bound for chunk in chunks) > most else []
        if not folded:
            table = file.read(columns=names, use_threads=use_threads)
        else:
            with pq.ParquetFile(pa.BufferReader(content), read_dictionary=folded, **OPEN) as again:
                read = again.read(columns=names, use_threads=use_threads)
            wanted = pa.schema([file.schema_arrow.field(name) for name in read.column_names], file.schema_arrow.metadata)
            unfolded = sum(_unfolded(chunk) for column in read.columns for chunk in column.chunks)
            _at_most(sum(chunk.bound for chunk in chunks if chunk.path not in folded) + unfolded, most)
            table = read.cast(wanted)
    finally:
        file.close()
    table.validate(full=True)
    return table


class _Chunk:
    """What a column's part in one row group may become in memory.

    Attributes:
        path: Of the leaf, as Parquet names it.
        bound: Bytes at most.
        folded: Whether this bound is of texts in a dictionary, and so may be far above what they are.
    """

    def __init__(self, path: str, found: Sequence[Page], width: int | None):
        values = sum(page.values for page in found if page.kind != DICTIONARY)
        dictionary = max((page.size for page in found if page.kind == DICTIONARY), default=0)
        plain = sum(page.size for page in found)
        self.path, self.folded = path, width is None and dictionary > 0
        self.bound = plain + values * (LEVELS + (width or 8)) + (values * dictionary if self.folded else 0)


def _looked_at(file: pq.ParquetFile, content: bytes, columns: Sequence[str] | None, most: int) -> list[_Chunk]:
    """Look at the headers of all pages that will be read.

    Raises:
        ValueError: The file says of itself what none of ours does.
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
    for group in groups:
        if group.num_columns != len(schema):
            raise ValueError(f"a row group has {group.num_columns:,} columns of {len(schema):,}")
        for place in range(group.num_columns):
            column, leaf = group.column(place), schema.column(place)
            if wanted is not None and not _is_of(leaf.path, wanted):
                continue
            found = list(_pages_of(column, whole))
            strange = sorted({page.encoding for page in found} - ENCODINGS)
            if strange:
                raise ValueError(f"{leaf.path}: is encoded in a way that promptmill does not use, number {strange[0]}")
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
    """Return the bytes of one decoded value; None of texts, which are as long as they are."""
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
