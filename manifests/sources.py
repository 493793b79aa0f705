"""Finds the files of a manifest and reads their rows as a stream, in order, without ever holding a file in memory.

A manifest is one file, a glob or a list of both, on any storage that fsspec knows. The ending says the format; `.gz`, `.bz2`
and `.xz` behind it are undone on the way.
"""

import csv
import io
import itertools
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec
import pyarrow.parquet

COMPRESSED = (".gz", ".bz2", ".xz")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MAX_LINE = 16 * 2**20  # characters of one row; more is not a manifest but some other file
PARQUET_ROWS = 1024  # read at a time


class ManifestError(ValueError):
    """A manifest that cannot be read at all; the message names the file and, where there is one, the row."""


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file.

    Attributes:
        file: The file's URI.
        number: Counted from 1 in its file; a header does not count.
        values: Column to value; what a file leaves empty is not in it.
        broken: What is wrong with a row that could not be read, while the rows around it can; then there are no values.
    """

    file: str
    number: int
    values: dict[str, Any]
    broken: str | None = None

    @property
    def where(self) -> str:
        return f"{self.file}, row {self.number}"


def find_files(manifest: str | Sequence[str]) -> list[str]:
    """The files of a manifest, in the order given; those of a glob by name.

    Raises:
        ManifestError: Nothing matches, or a file's ending says no known format.
    """
    files: list[str] = []
    for pattern in [manifest] if isinstance(manifest, str) else manifest:
        files += _matches(pattern)
    for file in files:
        _reader(file)
    return files


def _matches(pattern: str) -> list[str]:
    try:
        system, path = fsspec.core.url_to_fs(pattern)
        if any(character in path for character in "*?["):
            found = sorted(system.glob(path))
        else:
            found = [path] if system.isfile(path) else []
    except (OSError, ImportError, ValueError) as error:
        raise ManifestError(f"{pattern}: cannot be reached: {error}") from None
    if not found:
        raise ManifestError(f"{pattern}: no such file")
    return [name if _is_local(system) else system.unstrip_protocol(name) for name in found]


def _is_local(system: fsspec.AbstractFileSystem) -> bool:
    return "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)


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


# What a reader yields: a row's columns, or what is wrong with the row.
Values = dict[str, Any] | str


def _read(file: str) -> Iterator[Values]:
    try:
        with fsspec.open(file, "rb", compression="infer") as stream:
            yield from _reader(file)(file, stream)
    except UnicodeDecodeError as error:
        at = f"byte {error.object[error.start]:#04x}"
        raise ManifestError(f"{file}: not UTF-8 ({at}); convert it, for example with iconv -f latin1 -t utf8") from None
    except (csv.Error, pyarrow.ArrowException, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ManifestError(f"{file}: cannot be read as {_ending(file)}: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror or error}") from None


def _text(stream: IO[bytes]) -> io.TextIOWrapper:
    # utf-8-sig takes a byte order mark off; newlines are left to the csv module.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


def _lines(file: str, stream: IO[bytes]) -> Iterator[str]:
    text = _text(stream)
    for number in itertools.count(1):
        line = text.readline(MAX_LINE)
        if not line:
            return
        if len(line) == MAX_LINE and not line.endswith("\n"):
            raise ManifestError(f"{file}, line {number}: longer than {MAX_LINE // 2**20} MiB; is this a manifest?")
        if line.strip():
            yield line.rstrip("\r\n")


def _read_jsonl(file: str, stream: IO[bytes]) -> Iterator[Values]:
    for line in _lines(file, stream):
        yield _json(line)


def _json(text: str | bytes) -> Values:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"


def _read_json(file: str, stream: IO[bytes]) -> Iterator[Values]:
    # A JSON array cannot be read as a stream with the standard library: it is for small manifests.
    try:
        rows = json.load(_text(stream))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{file}: not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ManifestError(f"{file}: holds {type(rows).__name__}, not a list of rows")
    yield from map(_mapping, rows)


def _mapping(values: Any) -> Values:
    return values if isinstance(values, dict) else f"holds {type(values).__name__}, not columns and values"


def _read_csv(file: str, stream: IO[bytes], delimiter: str = ",") -> Iterator[Values]:
    csv.field_size_limit(MAX_LINE)
    reader = csv.DictReader(_text(stream), delimiter=delimiter, strict=True)
    header = reader.fieldnames or []
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise ManifestError(f"{file}: the header names {', '.join(doubled)} more than once")
    for values in reader:
        if None in values:
            yield f"has more cells than the header has columns; quote what holds a {delimiter!r}"
        else:
            # A cell cannot tell empty from absent, so it is absent; JSON and Parquet can.
            yield {name: value for name, value in values.items() if value != ""}


def _read_tsv(file: str, stream: IO[bytes]) -> Iterator[Values]:
    return _read_csv(file, stream, "\t")


def _read_txt(file: str, stream: IO[bytes]) -> Iterator[Values]:
    for line in _lines(file, stream):
        yield {"prompt": line}


def _read_parquet(file: str, stream: IO[bytes]) -> Iterator[Values]:
    table = pyarrow.parquet.ParquetFile(stream)
    made_here = _is_output(table.schema_arrow.names)
    names = [name for name in table.schema_arrow.names if name != "clip_embedding"]
    for batch in table.iter_batches(PARQUET_ROWS, columns=names):
        for values in batch.to_pylist():
            if not made_here:
                yield values
            elif values["selected"]:
                yield _as_input(values)


# What promptmill adds to the rows of its own output, and what cannot hold for a second pass.
ADDED_COLUMNS = frozenset(
    """
    key id candidate_index rank selected status error error_message unet_evaluations batch_shape model revision dtype versions
    clip_score clip_embedding sha256 pixel_sha256 bytes shard prompt_truncated candidates keep mode
    init_image_sha256 mask_image_sha256
    """.split()  # noqa: SIM905 (twenty lines of one word each say no more)
)


def _is_output(names: Sequence[str]) -> bool:
    return {"key", "candidate_index", "selected", "pixel_sha256"} <= set(names)


def _as_input(values: dict[str, Any]) -> dict[str, Any]:
    """A row of our own output as a request: its key becomes its id, its candidate's seed the row's."""
    kept = {name: value for name, value in values.items() if name not in ADDED_COLUMNS}
    controls = [
        {name: value for name, value in control.items() if name != "sha256"} for control in kept.pop("controls", None) or []
    ]
    return {"id": values["key"], **kept, **({"controls": controls} if controls else {})}


def _read_tar(file: str, stream: IO[bytes]) -> Iterator[Values]:
    """A WebDataset: each image, named as a member of the tar, with the text or JSON that shares its key."""
    key = ""
    values: Values = {}
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if not member.isfile():
                continue
            # As in webdataset, the key ends at the first dot of the name.
            folder, name = PurePosixPath(member.name).parent, PurePosixPath(member.name).name
            stem, _, ending = name.partition(".")
            if str(folder / stem) != key:
                if "init_image" in values or isinstance(values, str):
                    yield values
                key, values = str(folder / stem), {"id": str(folder / stem)}
            if isinstance(values, str):
                continue
            content = tar.extractfile(member)
            assert content is not None
            if f".{ending.lower()}" in IMAGE_ENDINGS:
                values["init_image"] = f"{file}::{member.name}"
            elif ending == "txt":
                values.setdefault("prompt", content.read(MAX_LINE).decode("utf-8-sig").strip())
            elif ending == "json":
                described = _json(content.read(MAX_LINE))
                values = f"{member.name}: {described}" if isinstance(described, str) else values | described
        if "init_image" in values or isinstance(values, str):
            yield values


READERS: dict[str, Callable[[str, IO[bytes]], Iterator[Values]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
    ".tar": _read_tar,
}


def _ending(file: str) -> str:
    path = PurePosixPath(file)
    return PurePosixPath(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()


def _reader(file: str) -> Callable[[str, IO[bytes]], Iterator[Values]]:
    reader = READERS.get(_ending(file))
    if reader is None:
        raise ManifestError(f"{file}: {_ending(file) or 'no ending'} is not a format of manifests; those are {' '.join(READERS)}")
    return reader
