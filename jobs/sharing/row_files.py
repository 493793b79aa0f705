"""Writes rows into one file of a person's choice, Parquet or JSON lines, which appears once it is whole."""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from promptmill.shards.storage import SCRATCH

PARQUET, JSONL = ".parquet", ".jsonl"

Write = Callable[[Sequence[Mapping[str, Any]]], None]


class ExportError(ValueError):
    """Reports an export that cannot be made as asked for; the message is one line."""


def check_ending(file: Path) -> None:
    """Raise ExportError where a file's name is neither of Parquet nor of JSON lines."""
    if file.suffix not in (PARQUET, JSONL):
        raise ExportError(f"{file}: no ending of rows; use {PARQUET} or {JSONL}")


@contextmanager
def writing(file: Path, form: pa.Schema) -> Iterator[Write]:
    """Yield a function that adds rows; at the end, if all went well, the file replaces an earlier one.

    In JSON lines null values are left out.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.parent / f"{SCRATCH}{secrets.token_hex(8)}"
    try:
        if file.suffix == PARQUET:
            with pq.ParquetWriter(scratch, form, compression="zstd") as parquet:
                yield lambda rows: parquet.write_table(pa.Table.from_pylist(list(rows), form)) if rows else None
        else:
            with scratch.open("w", encoding="utf-8") as lines:

                def write(rows: Sequence[Mapping[str, Any]]) -> None:
                    for row in rows:
                        said = {name: value for name, value in row.items() if value is not None}
                        lines.write(json.dumps(said, ensure_ascii=False) + "\n")

                yield write
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
