"""The JSON beside an image: its row of the metadata, in types that every reader of JSON takes alike."""

import base64
import json
import math
from collections.abc import Iterator
from datetime import date, time
from typing import Any

import pyarrow as pa

LEFT_OUT = "clip_embedding"  # hundreds of numbers, in the Parquet


def json_form(form: pa.Schema) -> pa.Schema:
    """The columns of the JSON, in its order, with the types that its values have: what JSON cannot say is text."""
    return pa.schema([pa.field(field.name, _json_type(field.type)) for field in form if field.name != LEFT_OUT])


def _json_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind):
        return _json_type(kind.value_type)
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _json_type(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.list_(pa.struct([("key", _json_type(kind.key_type)), ("value", _json_type(kind.item_type))]))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_json_type(kind.value_type))
    if types.is_float16(kind):
        return pa.float32()
    plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
    return kind if plain else pa.string()


def encode_rows(table: pa.Table) -> Iterator[bytes]:
    """The JSON of each row: every column, in its order, nulls too; floats always as floats.

    NaN and infinities, which JSON does not have, are null; times are ISO 8601; binary values are base64; a map is a list of
    its keys and values.
    """
    rows = table.drop_columns([LEFT_OUT]) if LEFT_OUT in table.column_names else table
    # Batches, since Python's objects for a whole shard take far more memory than its table.
    for batch in rows.to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            yield json.dumps(_plain(row), ensure_ascii=False, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return {"key": _plain(value[0]), "value": _plain(value[1])}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)
