"""Makes, writes and reads the metadata of a shard: one Parquet file, a row a candidate, the same bytes for the same rows."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from promptmill.configs.columns import (
    CLIP_SCORE,
    COLUMNS,
    EMBEDDING,
    FORMAT,
    LOST,
    RANK_SCORE,
    Column,
    Need,
    Role,
    Stated,
    always,
    by_name,
    declared_column,
    reserved,
    roles_in,
    type_in,
)
from promptmill.shards.bounded_parquet import read_parquet

IMAGE = "image"  # the column that parts have beside these
FOUND = "promptmill.found"  # the column that parts of slices have beside that: what ranks a candidate, exactly
FOUND_KIND = pa.struct(
    [
        ("score", pa.float64()),
        ("others", pa.list_(pa.float64())),
        ("embedding", pa.list_(pa.float32())),
        ("hash", pa.uint64()),
        ("colours", pa.list_(pa.int16())),
    ]
)
PASSED = "promptmill.pass"  # the column of parts that passes leave: what goes on of a candidate, exactly
PASSED_KIND = pa.struct(
    [
        ("draft", pa.int32()),
        ("score", pa.float64()),
        ("embedding", pa.list_(pa.float32())),
        ("hash", pa.uint64()),
        ("colours", pa.list_(pa.int16())),
        ("images", pa.map_(pa.string(), pa.string())),
    ]
)
RESERVED = reserved() | {IMAGE, FOUND}  # what carried columns may not be called


def schema(
    carried: Mapping[str, pa.DataType],
    embedding: int | None,
    drafts: bool = False,
    growing: bool = False,
    declared: Sequence[Column] = (),
    format: int = FORMAT,
) -> pa.Schema:
    """Return the schema of a dataset's metadata, without the columns of what is not used.

    Args:
        carried: The manifest's own columns, their types fixed once at the plan.
        embedding: The width of CLIP embeddings, or None where none are written.
        drafts: Whether candidates are drafted.
        growing: Whether candidates of any request grow.
        declared: Columns that the ranking's scorers and diversity declare; they stand behind `clip_score`.
        format: The dataset's format: columns that came later are not there.

    Raises:
        ValueError: A carried column has the name of one of ours.
    """
    taken = sorted(set(carried) & (RESERVED | {column.name for column in declared}))
    if taken:
        raise ValueError(f"carried columns are named like promptmill's own: {', '.join(taken)}")
    needs = {None: True, Need.DRAFTS: drafts, Need.GROWING: growing, Need.EMBEDDINGS: embedding is not None}
    fields: dict[str, pa.DataType] = {}
    for column in COLUMNS:
        if column.since <= format and needs.get(column.need):
            fields[column.name] = pa.list_(pa.float16(), embedding) if column.name == EMBEDDING else type_in(column, format)
        if column.name == CLIP_SCORE:
            fields |= {one.name: type_in(one, format) for one in declared}
    said = Stated(format, {column.name: column.role for column in declared})
    return pa.schema(list({**fields, **carried}.items()), said.metadata)


def slice_form(form: pa.Schema) -> pa.Schema:
    """Return the schema of the parts that slices of a request's candidates leave: the metadata's, and what ranks a candidate."""
    return form.append(pa.field(FOUND, FOUND_KIND))


def pass_form(form: pa.Schema) -> pa.Schema:
    """Return the schema of the parts that a pass leaves: what rendering and scoring tell, what ranks, and what goes on."""
    told = {"key", "candidate_index", "status", "error", "error_message", "width", "height", "seed", "prompt_truncated"}
    told |= {LOST, "unet_evaluations", CLIP_SCORE, *declared_in(form), "sha256", "pixel_sha256", "bytes", EMBEDDING}
    fields = [field for field in form if field.name in told]
    return pa.schema([*fields, pa.field(FOUND, FOUND_KIND), pa.field(PASSED, PASSED_KIND)])


def declared_in(form: pa.Schema) -> dict[str, Column]:
    """Return the columns of a dataset that its scorers, its diversity or a copy without near-duplicates declared, by name."""
    known = by_name()
    roles = roles_in(form)
    ours = (name for name in form.names if roles[name] is not Role.CARRIED)
    return {name: declared_column(name, roles[name]) for name in ours if name not in known or known[name].need is Need.DECLARED}


def ranks_by(form: pa.Schema) -> str:
    """Return the name of the score that a dataset's candidates are ranked by: CLIP's, unless others have their say."""
    return RANK_SCORE if RANK_SCORE in declared_in(form) else CLIP_SCORE


def with_declared(table: pa.Table, column: Column, values: pa.Array) -> pa.Table:
    """Return a shard's metadata with one more declared column, behind the last one."""
    before = Stated.of(table.schema)
    made = table.add_column(table.column_names.index("sha256"), pa.field(column.name, column.type), values)
    declared = {name: there.role for name, there in declared_in(table.schema).items()} | {column.name: column.role}
    return made.replace_schema_metadata(Stated(before.format, declared).metadata)


def make_table(rows: Iterable[Mapping[str, Any]], form: pa.Schema) -> pa.Table:
    """Return rows as a table, in the order of their keys; a column that a row lacks is null there.

    Raises:
        ValueError: A row has a column that the schema does not know.
    """
    ordered = sorted(rows, key=lambda row: row["key"])
    for row in ordered:
        unknown = sorted(set(row) - set(form.names))
        if unknown:
            raise ValueError(f"{row['key']}: no column {', '.join(unknown)}")
    return pa.Table.from_pylist(ordered, form)


def encode_table(table: pa.Table) -> bytes:
    """Return a table as a Parquet file, its rows as they stand; the same bytes however the table was put together."""
    file = io.BytesIO()
    # Where chunks end would decide where pages end.
    whole = table.combine_chunks()
    pq.write_table(whole, file, compression="zstd", compression_level=3, row_group_size=65_536, version="2.6")
    return file.getvalue()


def read_table(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the metadata of a shard from its Parquet file.

    Args:
        content: The bytes of the whole file.
        columns: Names of the columns to read, which alone have to be there; None for all.

    Raises:
        ValueError: The file is truncated, altered beyond reading, of a later format, or lacks one of our columns; a column of ours
            has another type or occurs twice; or the file would become larger in memory than one of this size of ours may.
    """
    table = read_parquet(content, columns and list(columns))
    format = Stated.of(table.schema).format
    missing = [name for name in columns or (column.name for column in always(format)) if name not in table.column_names]
    if missing:
        raise ValueError(f"lacks the columns {', '.join(missing)}")
    _check_types(table.schema, format)
    return table


def _check_types(form: pa.Schema, format: int) -> None:
    """Raise ValueError where a column of a schema has another type than ours, or is there twice."""
    if len(set(form.names)) < len(form.names):
        raise ValueError("has a column twice")
    ours = {column.name: column for column in COLUMNS if column.need is not Need.DECLARED} | declared_in(form)
    for name in form.names:
        if name == EMBEDDING:
            if not _is_vector(form.field(name).type):
                raise ValueError(f"its column {name} is {form.field(name).type}, not lists of one length of halffloat")
        elif name in ours and form.field(name).type != (wanted := type_in(ours[name], format)):
            raise ValueError(f"its column {name} is {form.field(name).type}, not {wanted}")


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type) and kind.list_size > 0)
