"""Finds the files of a manifest and reads their rows as a stream, in order, without ever holding a file in memory.

A manifest is one file, a glob or a list of both, on any storage that fsspec knows. The ending says the format; `.gz`, `.bz2`
and `.xz` behind it are undone on the way (not for tars, whose images are read again later).
"""

import csv
import io
import itertools
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO

import fsspec
import pyarrow
import pyarrow.parquet

from configs.errors import quoted, shown
from manifests.json_rows import parse_row, read_array
from manifests.outputs import as_input, is_output
from manifests.rows import MAX_ROW, ManifestError, Row, Values
from manifests.tars import read_samples

COMPRESSED = (".gz", ".bz2", ".xz")
PARQUET_ROWS = 1024  # read at a time


def find_files(manifest: str | Sequence[str]) -> list[str]:
    """The files of a manifest, in the order given; those of a glob by name.

    Raises:
        ManifestError: Nothing matches, or a file's ending says no known format.
    """
    files: list[str] = []
    for pattern in [manifest] if isinstance(manifest, str) else manifest:
        files += _matches(pattern)
    if not files:
        raise ManifestError("the manifest is a list of no files")
    for file in files:
        _reader(file)
    return files


def _matches(pattern: str) -> list[str]:
    try:
        system, path = fsspec.core.url_to_fs(pattern)
        if any(character in path for character in "*?["):
            found = sorted(name for name in system.glob(path) if system.isfile(name))
        else:
            found = [path] if system.isfile(path) else []
            if not found and system.isdir(path):
                raise ManifestError(f"{pattern}: is a folder; name its files, as in {pattern.rstrip('/')}/*.jsonl")
    except ManifestError:
        raise
    except Exception as error:  # what storages raise, without credentials for one, has no common base
        raise ManifestError(f"{pattern}: cannot be reached: {_first_line(error)}") from None
    if not found:
        raise ManifestError(f"{pattern}: no such file")
    return [name if _is_local(system) else system.unstrip_protocol(name) for name in found]


def _is_local(system: fsspec.AbstractFileSystem) -> bool:
    return "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)


def _first_line(error: BaseException) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return shown((strerror or str(error) or type(error).__name__).splitlines()[0], 300)


def read_rows(files: Sequence[str]) -> Iterator[Row]:
    """Every row of these files, in order.

    Raises:
        ManifestError: A file that is not what its ending says, not UTF-8, or empty. A single bad line is no such error.
    """
    for file in files:
        number = 0
        for number, values in enumerate(_read(file), 1):
            if isinstance(values, str):
                yield Row(file, number, {}, broken=values)
            else:
                yield Row(file, number, {name: value for name, value in values.items() if value is not None})
        if number == 0:
            raise ManifestError(f"{file}: has no rows")


def _read(file: str) -> Iterator[Values]:
    """A file's rows; what its reader raises becomes one line, with the place as far as it is known."""
    rows = 0
    try:
        with fsspec.open(file, "rb", compression="infer") as stream:
            for values in _reader(file)(file, stream):
                yield values
                rows += 1
    except ManifestError:
        raise
    except UnicodeDecodeError as error:
        raise ManifestError(f"{_after(file, rows)}: {_not_utf8(error.object[error.start], rows == 0)}") from None
    except (csv.Error, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError, MemoryError) as error:
        # A damaged file may claim any size.
        raise ManifestError(f"{_after(file, rows)}: cannot be read as {_ending(file)}: {_first_line(error)}") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ManifestError(f"{_after(file, rows)}: {_first_line(error)}") from None


def _after(file: str, rows: int) -> str:
    return f"{file}, after row {rows}" if rows else file


def _not_utf8(byte: int, at_start: bool) -> str:
    # A UTF-16 file begins with a mark of these two bytes.
    encoding = "utf16" if at_start and byte in (0xFE, 0xFF) else "latin1"
    return f"not UTF-8 (byte {byte:#04x}); convert it, for example with iconv -f {encoding} -t utf8"


def _lines(file: str, stream: IO[bytes]) -> Iterator[str]:
    """The lines of a text file with their ends; a byte order mark is taken off."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    for number in itertools.count(1):
        line = text.readline(MAX_ROW)
        if not line:
            return
        if len(line) == MAX_ROW and not line.endswith("\n"):
            raise ManifestError(f"{file}, line {number}: longer than {MAX_ROW // 2**20} MiB; is this a manifest?")
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                # A byte that is no UTF-8 came out as 0xdc00 and itself.
                byte = ord(line[error.start]) & 0xFF
                raise ManifestError(f"{file}, line {number}: {_not_utf8(byte, number == 1)}") from None
        yield line


def _read_jsonl(file: str, stream: IO[bytes]) -> Iterator[Values]:
    for line in _lines(file, stream):
        if line.strip():
            yield parse_row(line)


def _read_json(file: str, stream: IO[bytes]) -> Iterator[Values]:
    return read_array(file, io.TextIOWrapper(stream, encoding="utf-8-sig"))


def _read_csv(file: str, stream: IO[bytes], delimiter: str = ",") -> Iterator[Values]:
    """Rows of cells. An empty cell is absent, so the config's default holds: a cell cannot clear a default.

    JSON and Parquet can, with an empty string; here a negative_prompt of one space comes to the same for a text encoder.
    """
    csv.field_size_limit(MAX_ROW)
    reader = csv.reader(_lines(file, stream), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ManifestError(f"{file}: the header cannot be read: {error}") from None
    _check_header(file, header, delimiter)
    for number in itertools.count(1):
        try:
            # Behind a line without cells comes the next.
            cells = next(filter(None, reader), None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise ManifestError(f"{file}, row {number}: a quote is opened and never closed") from None
            if "field limit" in str(error):
                raise ManifestError(f"{file}, row {number}: a cell of more than {MAX_ROW // 2**20} MiB; is a quote open?") from None
            # The next line begins a row again.
            yield f"not a row of cells (it ends in line {reader.line_num}): {error}; a quote inside quotes is doubled"
            continue
        if cells is None:
            return
        if len(cells) != len(header):
            yield _uneven(len(cells), len(header), delimiter)
        elif any("\0" in cell for cell in cells):
            yield "holds a NUL character; is this UTF-8 text?"
        else:
            yield {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}


def _check_header(file: str, header: list[str], delimiter: str) -> None:
    if any("\0" in name for name in header):
        raise ManifestError(f"{file}: the header holds a NUL character; is this UTF-8 text?")
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise ManifestError(f"{file}: the header names {shown(', '.join(doubled))} more than once")
    if "" in header:
        raise ManifestError(f"{file}: column {header.index('') + 1} of the header has no name; name it or leave it out")
    others = [other for other in ",;\t" if other != delimiter and len(header) == 1 and other in header[0]]
    if others:
        raise ManifestError(f"{file}: the header is one column, {quoted(header[0])}; put {delimiter!r} between columns")


def _uneven(cells: int, columns: int, delimiter: str) -> str:
    if cells > columns:
        return f"has {cells} cells, more than the header has columns ({columns}); quote what holds a {delimiter!r}"
    return f"has {cells} cells, fewer than the header has columns ({columns}); leave a cell empty, but not out"


def _read_tsv(file: str, stream: IO[bytes]) -> Iterator[Values]:
    return _read_csv(file, stream, "\t")


def _read_txt(file: str, stream: IO[bytes]) -> Iterator[Values]:
    for line in _lines(file, stream):
        if line.strip():
            yield {"prompt": line.rstrip("\r\n")} if "\0" not in line else "holds a NUL character; is this UTF-8 text?"


def _read_parquet(file: str, stream: IO[bytes]) -> Iterator[Values]:
    table = pyarrow.parquet.ParquetFile(stream)
    names = table.schema_arrow.names
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ManifestError(f"{file}: names the column {shown(', '.join(doubled))} more than once")
    made_here = is_output(names)
    wanted = [name for name in names if not (made_here and name == "clip_embedding")]
    for batch in table.iter_batches(PARQUET_ROWS, columns=wanted):
        for values in _without_nanoseconds(batch).to_pylist():
            if not made_here:
                yield values
            elif values["selected"]:
                yield as_input(values)


def is_own_output(file: str) -> bool:
    """Whether a file of a manifest is Parquet that promptmill has written."""
    if _ending(file) != ".parquet":
        return False
    with fsspec.open(file, "rb", compression="infer") as stream:
        return is_output(pyarrow.parquet.read_schema(stream).names)


def _without_nanoseconds(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Times to the microsecond: Python's own know no less, and pyarrow would need pandas for more."""
    for place, field in enumerate(batch.schema):
        coarse = _in_microseconds(field.type)
        if coarse != field.type:
            batch = batch.set_column(place, field.name, batch.column(place).cast(coarse, safe=False))
    return batch


def _in_microseconds(kind: pyarrow.DataType) -> pyarrow.DataType:
    if pyarrow.types.is_timestamp(kind):
        return pyarrow.timestamp("us", kind.tz)
    if pyarrow.types.is_duration(kind):
        return pyarrow.duration("us")
    return pyarrow.time64("us") if pyarrow.types.is_time64(kind) else kind


READERS: dict[str, Callable[[str, IO[bytes]], Iterator[Values]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
    ".tar": read_samples,
}


def _ending(file: str) -> str:
    path = PurePosixPath(file)
    return PurePosixPath(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def _reader(file: str) -> Callable[[str, IO[bytes]], Iterator[Values]]:
    reader = READERS.get(_ending(file))
    if reader is None:
        raise ManifestError(f"{file}: {_ending(file) or 'no ending'} is not a format of manifests; those are {' '.join(READERS)}")
    return reader
