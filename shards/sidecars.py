"""The JSON beside an image: its row of the metadata."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from promptmill.configs.columns import EMBEDDING


def json_form(form: pa.Schema) -> pa.Schema:
    """Return the columns of the JSON, in its order: all but the embedding, hundreds of numbers that the Parquet has."""
    return pa.schema([field for field in form if field.name != EMBEDDING])


def encode_rows(table: pa.Table) -> Iterator[bytes]:
    """The JSON of each row: every column in its order, nulls too; floats as floats; NaN and infinities, which JSON lacks, null."""
    rows = table.select(json_form(table.schema).names)
    # By batches, since Python's objects for a whole shard take far more memory than its table.
    for batch in rows.to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            yield json.dumps(_finite(row), ensure_ascii=False, allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
