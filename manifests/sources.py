"""Finds the files of a manifest and reads their rows as a stream, in order, without ever holding a file in memory.

A manifest is one file, a glob or a list of both, on any storage that fsspec knows. The ending says the format. `.gz`, `.bz2` and
`.xz` behind the ending are decompressed while reading (not for tars, whose images are read again later).
"""

import bz2
import csv
import functools
import gzip
import io
import itertools
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, TypeVar, cast

import pyarrow

from promptmill.configs.errors import quoted, shown
from promptmill.manifests import parquet
from promptmill.manifests.files import open_file
from promptmill.manifests.finding import find, partitions
from promptmill.manifests.json_rows import parse_row, read_array
from promptmill.manifests.made_rows import MadeFile, Rows
from promptmill.manifests.picture_rows import PicturesFile, rows_of_pictures
from promptmill.manifests.pointers import HEAD, pointer
from promptmill.manifests.prompt_lists import ListFile, rows_of_list
from promptmill.manifests.rows import MAX_BLANK, MAX_ROW, ManifestError, NoRowsError, Row, Values
from promptmill.manifests.tars import read_samples

__all__ = ["ManifestError", "find_files", "is_own_output", "read_rows"]

COMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def find_files(manifest: str | Sequence[str]) -> list[str]:
    """Return the files of a manifest, in the order given; those of a glob sorted by name.

    Raises:
        ManifestError: Nothing matches, or a file's ending says no known format.
    """
    files: list[str] = []
    for pattern in [manifest] if isinstance(manifest, str) else manifest:
        files += find(pattern)
    if not files:
        raise ManifestError("the manifest is a list of no files")
    for file in files:
        _reader(file)
    return files


def _first_line(error: BaseException) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return shown((strerror or str(error) or type(error).__name__).splitlines()[0], 300)


def read_rows(files: Sequence[str], note: Callable[[str], None] = lambda line: None) -> Iterator[Row]:
    """Yield every row of these files, in order. A file without rows among others that have some is left out.

    Args:
        files: The manifest's files.
        note: Called with one line for each file that was left out.

    Raises:
        ManifestError: A file is not what its ending says, is not UTF-8, or no file has a row. A single bad line is no such error.
    """
    empty: list[tuple[str, str]] = []
    any_rows = False
    for file in files:
        if isinstance(file, MadeFile | PicturesFile):
            any_rows = True
            yield from Rows(file.made) if isinstance(file, MadeFile) else rows_of_pictures(file, note)
            continue
        if isinstance(file, ListFile):
            listed = False
            for row in _guarded(file, rows_of_list(file, functools.partial(_lines_of, file), note)):
                listed = any_rows = True
                yield row
            empty += [] if listed else [(file, f"{file}: has no rows")]
            continue
        number, why = 0, f"{file}: has no rows"
        shared = partitions(file)
        try:
            for number, values in enumerate(_guarded(file, _read(file)), 1):
                if isinstance(values, str):
                    yield Row(file, number, {}, broken=values)
                    continue
                there = {name: value for name, value in values.items() if value is not None}
                wrong = _unlike(there, shared) if shared else None
                yield Row(file, number, {}, broken=wrong) if wrong else Row(file, number, {**shared, **there} if shared else there)
        except NoRowsError as error:
            why = str(error)
        any_rows = any_rows or number > 0
        if number == 0:
            empty.append((file, why))
    if not any_rows and empty:
        others = f"; neither have the {len(empty) - 1:,} other files" if len(empty) > 1 else ""
        raise ManifestError(f"{empty[0][1]}{others}")
    for file, _ in empty:
        note(f"{PurePosixPath(file).name}: has no rows, and is left out")


def _unlike(values: dict[str, Any], shared: dict[str, str]) -> str | None:
    """Return the problem of a row whose value differs from the name of its folder, as in topic=pets/, or None."""
    for name, value in shared.items():
        if name in values and str(values[name]) != value:
            return f"{shown(name)}: {shown(str(values[name]))!r} here, but {shown(value)!r} in the name of the file's folder"
    return None


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    """Open a file of a manifest, decompressed as its ending says.

    Raises:
        ManifestError: The file is a pointer to a content that was not fetched.
    """
    with open_file(file) as stream:
        found = pointer(stream.read(HEAD))
        if found:
            raise ManifestError(f"{file}: {found}")
        stream.seek(0)
        undo = COMPRESSED.get(PurePosixPath(file).suffix.lower())
        if undo is None:
            yield stream
        else:
            with undo(stream) as plain:
                yield cast(IO[bytes], plain)


def _read(file: str) -> Iterator[Values]:
    with _opened(file) as stream:
        yield from _reader(file)(file, stream)


def _lines_of(file: str) -> Iterator[str]:
    with _opened(file) as stream:
        yield from _lines(file, stream)


_Read = TypeVar("_Read")


def _guarded(file: str, read: Iterator[_Read]) -> Iterator[_Read]:
    """Yield the rows that are read of a file; an error of the reader becomes one line, with the place as far as it is known."""
    rows = 0
    try:
        for one in read:
            yield one
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
    """Yield the lines of a text file with their line ends; a byte order mark is taken off."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    blank = 0
    for number in itertools.count(1):
        line = text.readline(MAX_ROW)
        if not line:
            return
        blank = blank + 1 if line.isspace() else 0
        if blank > MAX_BLANK:
            raise ManifestError(f"{file}, line {number}: {MAX_BLANK:,} empty lines follow each other; is this a manifest?")
        if len(line) == MAX_ROW and not line.endswith("\n"):
            raise ManifestError(f"{file}, line {number}: longer than {MAX_ROW // 2**20} MiB; is this a manifest?")
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                # surrogateescape has decoded a byte that is no UTF-8 as 0xdc00 plus the byte.
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
    """Yield the rows of a CSV file. An empty cell is absent, so the config's default holds: a cell cannot clear a default.

    JSON and Parquet can clear a default, with an empty string. In CSV a negative_prompt of one space has the same effect for a text
    encoder.
    """
    csv.field_size_limit(MAX_ROW)
    reader = csv.reader(_lines(file, stream), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ManifestError(f"{file}: the header cannot be read: {_said(error)}") from None
    _check_header(file, header, delimiter)
    names = set(header)
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
            yield f"not a row of cells (it ends in line {reader.line_num}): {_said(error)}; a quote inside quotes is doubled"
            continue
        if cells is None:
            return
        if any(cell[:1] in _SPACES and cell.lstrip()[:1] == '"' for cell in cells if '"' in cell):
            yield "a quote stands behind a space, where it quotes nothing; take out the space before it"
        elif cells[0].startswith(_BOM):
            yield "begins with U+FEFF, a byte order mark, as files that were joined have inside; take it out"
        elif cells[0].strip() in names and {cell.strip() for cell in cells} == names:
            yield "is the header again, as in files that were joined; take it out"
        elif len(cells) != len(header):
            yield _uneven(len(cells), len(header), delimiter)
        elif any("\0" in cell for cell in cells):
            yield "holds a NUL character; is this UTF-8 text?"
        else:
            yield {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}


def _said(error: csv.Error) -> str:
    return str(error).replace("\t", "\\t")


_SPACES = (" ", "\t", "\xa0")
_BOM = "\ufeff"


def _check_header(file: str, header: list[str], delimiter: str) -> None:
    if any("\0" in name for name in header):
        raise ManifestError(f"{file}: the header holds a NUL character; is this UTF-8 text?")
    if any(name.startswith('"') for name in header):
        raise ManifestError(f"{file}: a quote stands behind a space in the header, where it quotes nothing; take out the space")
    if any(_BOM in name for name in header):
        raise ManifestError(f"{file}: the header holds U+FEFF, a second byte order mark; take it out")
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


def is_own_output(file: str) -> bool:
    """Return whether a file of a manifest is Parquet that promptmill has written."""
    if isinstance(file, MadeFile | PicturesFile) or _ending(file) != ".parquet":
        return False
    with _opened(file) as stream:
        return parquet.is_own_output(stream)


READERS: dict[str, Callable[[str, IO[bytes]], Iterator[Values]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_txt,
    ".parquet": parquet.read_parquet,
    ".tar": read_samples,
}


def _ending(file: str) -> str:
    path = PurePosixPath(file.rpartition("/")[2])
    return PurePosixPath(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def _reader(file: str) -> Callable[[str, IO[bytes]], Iterator[Values]]:
    reader = READERS.get(_ending(file))
    if reader is None:
        raise ManifestError(f"{file}: {_ending(file) or 'no ending'} is not a format of manifests; those are {' '.join(READERS)}")
    return reader
