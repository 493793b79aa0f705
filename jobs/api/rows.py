"""Writes rows that a Python program holds as the file of a manifest, which is checked as any other manifest is."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from promptmill.manifests.rows import ManifestError

# A list of dicts, a pandas or polars frame, an Arrow table; or the path or the paths of a manifest.
Rows: TypeAlias = Any

JSONL, PARQUET = "rows.jsonl", "rows.parquet"


def paths_of(rows: Rows) -> list[str] | None:
    """Return the paths of a manifest's files where rows are given by these, else None."""
    if isinstance(rows, str | Path):
        return [str(rows)]
    if isinstance(rows, list | tuple) and rows and all(isinstance(row, str | Path) for row in rows):
        return [str(row) for row in rows]
    return None


def manifest_of(rows: Rows) -> tuple[str, bytes]:
    """Return the name and the content of a manifest's file: the same rows make the same bytes, so that a run of them goes on.

    Args:
        rows: A list of dicts, with images as paths, as bytes or as PIL images; a pandas or polars frame; an Arrow table.

    Raises:
        ManifestError: The rows are of no such kind, or one holds what no manifest can; the message names the row, counted from 1.
    """
    table = _as_table(rows)
    if table is None:
        if not isinstance(rows, Iterable) or isinstance(rows, Mapping | bytes):
            remedy = "give a list of dicts, a pandas or polars frame, an Arrow table, or the path of a manifest"
            raise ManifestError(f"rows are of the type {type(rows).__name__}; {remedy}")
        listed = [_as_dict(row, number) for number, row in enumerate(rows, 1)]
        if not any(isinstance(value, bytes) for row in listed for value in _within(row)):
            return JSONL, "".join(_as_line(row, number) for number, row in enumerate(listed, 1)).encode()
        table = _with_images(listed)
    file = io.BytesIO()
    pq.write_table(table, file)
    return PARQUET, file.getvalue()


def _as_table(rows: Rows) -> pa.Table | None:
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    # pandas keeps its index where it is not told otherwise; an index is no column of a manifest.
    if type(rows).__module__.partition(".")[0] == "pandas" and hasattr(rows, "columns"):
        return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    if hasattr(rows, "__arrow_c_stream__"):
        return pa.table(rows)
    return None


def _as_dict(row: Any, number: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ManifestError(f"row {number}: is of the type {type(row).__name__}, not a mapping of columns to values")
    for name in row:
        if not isinstance(name, str):
            raise ManifestError(f"row {number}: the name of a column is {name!r}, not a text")
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; images become the bytes of a PNG."""
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.save(file, "PNG")
        return file.getvalue()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return bytes(value) if isinstance(value, bytearray | memoryview) else value


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _within(one)
    else:
        yield value


def _as_line(row: dict[str, Any], number: int) -> str:
    for name, value in row.items():
        try:
            # NaN and infinities are written as Python's json has them: the reader of manifests refuses them in its own words.
            json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise ManifestError(f"row {number}: {name}: {_type_of(value)}, which no manifest holds") from None
    return json.dumps(row, ensure_ascii=False) + "\n"


def _type_of(value: Any) -> str:
    return f"is of the type {type(value).__name__}"


def _with_images(rows: list[dict[str, Any]]) -> pa.Table:
    """Return rows as a table whose images lie in its cells."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [_cells(row.get(name)) for row in rows]
        if any(isinstance(row.get(name), bytes) for row in rows):
            # An image that another row gives by its path stays one.
            values = [{"bytes": None, "path": value} if isinstance(value, str) else value for value in values]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            number = next(i for i in range(1, len(values) + 1) if not _fits(values[:i]))
            raise ManifestError(f"row {number}: {name}: {_type_of(rows[number - 1][name])}, others before are not") from None
    return pa.table(columns)


def _cells(value: Any) -> Any:
    """Return a value in which bytes, which are images, are cells of images."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, dict):
        return {name: _cells(one) for name, one in value.items()}
    return [_cells(one) for one in value] if isinstance(value, list) else value


def _fits(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True
