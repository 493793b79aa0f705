"""Reads the rows of a Parquet manifest in pieces, with limits on what a damaged or hostile file may claim."""

from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from promptmill.configs.columns import EMBEDDING, Stated
from promptmill.configs.errors import shown
from promptmill.configs.parquet_footers import IN_THIS_THREAD, check_chunks
from promptmill.manifests.cells import IMAGE_COLUMNS, PLAIN_IMAGE, address, is_image
from promptmill.manifests.own_outputs import as_input, is_output
from promptmill.manifests.roots import MAX_BYTES
from promptmill.manifests.rows import MAX_ROW, ManifestError, Values
from promptmill.manifests.samples import LISTS_OF_IMAGES, with_image

MOST_ROWS = 1024  # read at a time
IMAGE_ROWS = 16  # read at a time where images lie in the rows themselves
MOST_BYTES = 64 * 2**20  # of values that are Python's at a time
MOST_VALUES = 4 * 2**20  # of lists, of one row
CLAIMED, RATIO = 256 * 2**20, 200  # bytes that a column may claim at any rate, and else by what it takes in the file


def read_parquet(file: str, stream: IO[bytes]) -> Iterator[Values]:
    """Yield the rows of a Parquet file; of promptmill's own output only the selected rows, as requests.

    Raises:
        ManifestError: The file has a column twice, or claims more than its bytes can hold in earnest.
        pyarrow.ArrowException, OSError, ValueError: The file is damaged.
    """
    table = pyarrow.parquet.ParquetFile(stream, **IN_THIS_THREAD)
    form = table.schema_arrow
    doubled = sorted({name for name in form.names if form.names.count(name) > 1})
    if doubled:
        raise ManifestError(f"{file}: names the column {shown(', '.join(doubled))} more than once")
    made_here = is_output(form.names)
    try:
        declared = Stated.of(form).declared if made_here else None
    except ValueError as error:
        raise ManifestError(f"{file}: {error}") from None
    leaves = [table.schema.column(i).path for i in range(len(table.schema))]
    wanted = [leaf for leaf in leaves if not (made_here and leaf.split(".")[0] == EMBEDDING)]
    texts = [field.name for field in form if _is_text(field.type)]
    # As dictionaries, a long text that many rows share is in memory once.
    table = pyarrow.parquet.ParquetFile(stream, metadata=table.metadata, read_dictionary=texts, **IN_THIS_THREAD)
    images = {} if made_here else {field.name: field.type for field in form if field.name in IMAGE_COLUMNS and is_image(field.type)}
    check_chunks(table.metadata)
    number = 0
    for group in range(table.metadata.num_row_groups):
        facts = table.metadata.row_group(group)
        if facts.num_columns != len(leaves):
            raise ManifestError(f"{file}: row group {group} has {facts.num_columns:,} columns of {len(leaves):,}; is it damaged?")
        # By place, as Arrow reads the chunks: what a chunk itself says its column is called, a damaged footer may say otherwise.
        claims = {leaf: facts.column(place) for place, leaf in enumerate(leaves)}
        later = [leaf for leaf in wanted if not made_here and _is_bytes_of_image(leaf, leaves, images)]
        read = [leaf for leaf in wanted if leaf not in later or not _has_all(claims[leaf])]
        here = any(leaf.split(".")[0] in images and not leaf.endswith(".path") for leaf in read)
        rows = IMAGE_ROWS if here else MOST_ROWS
        for leaf in read:
            most = MAX_BYTES if leaf.split(".")[0] in images else MAX_ROW
            rows = min(rows, _check(file, group, facts.num_rows, claims[leaf], leaf, most))
        for batch in table.iter_batches(rows, row_groups=[group], columns=read, use_threads=False):
            for values in _rows(batch, images):
                number += 1
                if isinstance(values, str):
                    yield values
                elif not made_here:
                    yield _with_images(values, file, number)
                elif values["selected"]:
                    yield as_input(values, declared)


def is_own_output(stream: IO[bytes]) -> bool:
    """Return whether promptmill has written a Parquet file."""
    return is_output(pyarrow.parquet.read_schema(stream).names)


def _is_text(kind: pyarrow.DataType) -> bool:
    return any(check(kind) for check in (pyarrow.types.is_string, pyarrow.types.is_large_string))


def _is_bytes_of_image(leaf: str, leaves: Sequence[str], images: dict[str, pyarrow.DataType]) -> bool:
    """Return whether a leaf holds image bytes that have a path beside them; such bytes are read when rendering."""
    root, _, inner = leaf.partition(".")
    beside = leaf.removesuffix(".bytes") + ".path" in leaves
    return (
        beside
        and leaf.endswith(".bytes")
        and (root in images or (root in LISTS_OF_IMAGES and inner.endswith((".image.bytes", ".mask.bytes"))))
    )


def _has_all(chunk: Any) -> bool:
    """Return whether the statistics of a column's chunk prove that no bytes are missing in it."""
    return chunk.statistics is not None and chunk.statistics.has_null_count and chunk.statistics.null_count == 0


def _check(file: str, group: int, rows: int, chunk: Any, leaf: str, most: int) -> int:
    """Return how many rows may be read at a time.

    Raises:
        ManifestError: The column claims more bytes or values than its chunk can hold in earnest.
    """
    claimed, taken, rows = chunk.total_uncompressed_size, max(1, chunk.total_compressed_size), max(1, rows)
    where = f"{file}: row group {group}, column {shown(leaf.split('.')[0])}"
    if claimed > most * rows or (claimed > CLAIMED and claimed > RATIO * taken):
        raise ManifestError(f"{where}: {taken:,} bytes claim to hold {claimed:,} in {rows:,} rows; is this a manifest?")
    if chunk.num_values > MOST_VALUES * rows:
        raise ManifestError(f"{where}: claims {chunk.num_values:,} values in {rows:,} rows; is this a manifest?")
    return max(1, MOST_VALUES * rows // max(1, chunk.num_values))


def _rows(batch: pyarrow.RecordBatch, images: Collection[str]) -> Iterator[Values]:
    """Yield the rows of a batch as Python values, or as text with the row's problem, as many at a time as memory allows."""
    sizes = [_sizes(column) for column in batch.columns]
    long = dict[int, str]()
    for name, lengths in zip(batch.schema.names, sizes, strict=True):
        if lengths is not None and name not in images and (pyarrow.compute.max(lengths).as_py() or 0) > MAX_ROW:
            places = pyarrow.compute.indices_nonzero(pyarrow.compute.greater(lengths, MAX_ROW))
            long |= {place: f"{shown(name)}: longer than {MAX_ROW // 2**20} MiB" for place in places.to_pylist()}
    whole = sum(pyarrow.compute.sum(lengths).as_py() or 0 for lengths in sizes if lengths is not None)
    step = batch.num_rows if whole <= MOST_BYTES else max(1, batch.num_rows * MOST_BYTES // whole)
    start = 0
    while start < batch.num_rows:
        if start in long:
            yield long[start]
            start += 1
            continue
        end = min([start + step, batch.num_rows, *(place for place in long if place > start)])
        yield from _as_python(batch.slice(start, end - start))
        start = end


def _sizes(column: pyarrow.Array) -> pyarrow.Array | None:
    """Return the bytes of each cell of a column of texts or bytes, or None for a column of another type."""
    kind = column.type
    if pyarrow.types.is_dictionary(kind) and _is_text(kind.value_type):
        return pyarrow.compute.cast(pyarrow.compute.binary_length(column.dictionary), pyarrow.int64()).take(column.indices)
    if _is_text(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return pyarrow.compute.cast(pyarrow.compute.binary_length(column), pyarrow.int64())
    if pyarrow.types.is_nested(kind) and column.nbytes > MOST_BYTES:
        return pyarrow.array([column.slice(i, 1).nbytes for i in range(len(column))], pyarrow.int64())
    return None


def _as_python(batch: pyarrow.RecordBatch) -> Iterator[Values]:
    names = batch.schema.names
    columns, wrong = [], dict[int, str]()
    for name, column in zip(names, batch.columns, strict=True):
        column = _without_nanoseconds(column)
        try:
            columns.append(column.to_pylist())
        except UnicodeDecodeError:
            raise
        except (ValueError, OverflowError):  # a time that Python does not know, in some cell
            columns.append([_cell(column, place, name, wrong) for place in range(len(column))])
    for place, cells in enumerate(zip(*columns, strict=True)):
        yield wrong.get(place) or dict(zip(names, cells, strict=True))


def _cell(column: pyarrow.Array, place: int, name: str, wrong: dict[int, str]) -> Any:
    try:
        return column[place].as_py()
    except (ValueError, OverflowError) as error:
        said = " ".join(str(error).split())
        wrong[place] = f"{shown(name)}: a value that cannot be read ({shown(said)}); times go from year 1 to 9999"
        return None


def _without_nanoseconds(column: pyarrow.Array) -> pyarrow.Array:
    """Return times to the microsecond: Python's own times go no finer, and pyarrow would need pandas for nanoseconds."""
    coarse = _in_microseconds(column.type)
    return column if coarse == column.type else column.cast(coarse, safe=False)


def _in_microseconds(kind: pyarrow.DataType) -> pyarrow.DataType:
    if pyarrow.types.is_timestamp(kind) and kind.unit == "ns":
        return pyarrow.timestamp("us", kind.tz)
    if pyarrow.types.is_duration(kind) and kind.unit == "ns":
        return pyarrow.duration("us")
    return pyarrow.time64("us") if pyarrow.types.is_time64(kind) else kind


def _with_images(values: dict[str, Any], file: str, number: int) -> dict[str, Any]:
    """Return a row whose images are paths: an image in the file itself is named by its cell."""
    plain = values.get(PLAIN_IMAGE)
    if isinstance(plain, dict | bytes) and values.get("init_image") is None:
        values.pop(PLAIN_IMAGE)
        named = _named(plain, file, PLAIN_IMAGE, number)
        values = with_image(values, named) if isinstance(named, str) else {**values, PLAIN_IMAGE: named}
    for name in IMAGE_COLUMNS:
        value = values.get(name)
        if name != PLAIN_IMAGE and isinstance(value, dict | bytes):
            values[name] = _named(value, file, name, number)
    for name in LISTS_OF_IMAGES:
        listed = values.get(name)
        if isinstance(listed, list) and any(_in_cells(one) for one in listed):
            values[name] = [
                one | {key: _named(one[key], file, f"{name}.{place}.{key}", number) for key in _in_cells(one)}
                if _in_cells(one)
                else one
                for place, one in enumerate(listed)
            ]
    return values


def _in_cells(one: Any) -> list[str]:
    """Return the keys of an entry of a list, of its image and its mask, whose pictures lie in the file itself."""
    return [key for key in ("image", "mask") if isinstance(one.get(key), dict | bytes)] if isinstance(one, dict) else []


def _named(value: dict[str, Any] | bytes, file: str, column: str, number: int) -> Any:
    """Return the path of an image that is a struct of bytes and path, or bytes alone."""
    if isinstance(value, dict) and not set(value) <= {"bytes", "path"}:
        return value
    if isinstance(value, dict) and "bytes" in value and value["bytes"] is None:
        return value.get("path")
    return address(file, column, number)
