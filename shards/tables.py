"""The metadata of a shard: one Parquet, a row a candidate, the same bytes for the same rows."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from promptmill.shards.bounded_parquet import read_parquet

CONTROL = pa.struct(
    [
        ("type", pa.string()),
        ("image", pa.string()),
        ("preprocess", pa.string()),
        ("scale", pa.float64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("sha256", pa.string()),
    ]
)
LORA = pa.struct([("name", pa.string()), ("scale", pa.float64())])

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

# In the order in which they stand; times and hosts do not belong here, since they differ between runs.
COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "id": pa.string(),
    "candidate_index": pa.int32(),
    "rank": pa.int32(),
    "selected": pa.bool_(),
    "status": pa.string(),
    "error": pa.string(),
    "error_message": pa.string(),
    "prompt": pa.string(),
    "negative_prompt": pa.string(),
    "mode": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "steps": pa.int32(),
    "guidance_scale": pa.float64(),
    "guidance_rescale": pa.float64(),
    "scheduler": pa.string(),
    "strength": pa.float64(),
    "seed": pa.int64(),
    "candidates": pa.int32(),
    "keep": pa.int32(),
    "init_image": pa.string(),
    "init_image_sha256": pa.string(),
    "mask_image": pa.string(),
    "mask_image_sha256": pa.string(),
    "controls": pa.list_(CONTROL),
    "loras": pa.list_(LORA),
    "prompt_truncated": pa.bool_(),
    "model": pa.string(),
    "revision": pa.string(),
    "dtype": pa.string(),
    "batch_shape": pa.string(),
    "kernels": pa.string(),
    "versions": pa.string(),
    "unet_evaluations": pa.int32(),
    "clip_score": pa.float32(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "bytes": pa.int64(),
    "shard": pa.int32(),
}


EMBEDDING = "clip_embedding"
DRAFT_SCORES, SPARED = "draft_scores", "candidates_spared"
CLIP_SCORE, RANK_SCORE, REJECTED_FOR = "clip_score", "rank_score", "rejected_for"
RESERVED = frozenset({*COLUMNS, EMBEDDING, DRAFT_SCORES, SPARED, IMAGE, FOUND})  # what carried columns may not be called


def schema(
    carried: Mapping[str, pa.DataType],
    embedding: int | None,
    drafts: bool = False,
    growing: bool = False,
    ranking: Mapping[str, pa.DataType] | None = None,
) -> pa.Schema:
    """The schema of a dataset's metadata. Columns of what is not used are not there.

    Args:
        carried: The manifest's own columns, their types fixed once at the plan.
        embedding: The width of CLIP embeddings, or None where none are written.
        drafts: Whether candidates are drafted.
        growing: Whether candidates of any request grow.
        ranking: What the ranking's scorers and diversity have to say, where any are declared; it stands behind `clip_score`.

    Raises:
        ValueError: A carried column has the name of one of ours.
    """
    taken = sorted(set(carried) & (RESERVED | (ranking or {}).keys()))
    if taken:
        raise ValueError(f"carried columns are named like promptmill's own: {', '.join(taken)}")
    fields: dict[str, pa.DataType] = {}
    for name, kind in COLUMNS.items():
        fields |= {name: kind, **(ranking or {})} if name == CLIP_SCORE else {name: kind}
    if drafts:
        fields[DRAFT_SCORES] = pa.list_(pa.float32())
    if growing:
        fields[SPARED] = pa.int32()
    if embedding is not None:
        fields[EMBEDDING] = pa.list_(pa.float16(), embedding)
    return pa.schema(list({**fields, **carried}.items()))


def slice_form(form: pa.Schema) -> pa.Schema:
    """Return the schema of what a slice of a request's candidates makes: that of the metadata, and what ranks a candidate."""
    return form.append(pa.field(FOUND, FOUND_KIND))


def pass_form(form: pa.Schema) -> pa.Schema:
    """Return the schema of what a pass leaves: of the metadata what rendering and scoring tell, and what ranks and what goes on."""
    told = {"key", "candidate_index", "status", "error", "error_message", "width", "height", "seed", "prompt_truncated"}
    told |= {"unet_evaluations", CLIP_SCORE, *ranking_names(form.names), "sha256", "pixel_sha256", "bytes", EMBEDDING}
    fields = [field for field in form if field.name in told]
    return pa.schema([*fields, pa.field(FOUND, FOUND_KIND), pa.field(PASSED, PASSED_KIND)])


def ranking_names(columns: Sequence[str]) -> list[str]:
    """Of a dataset's columns in their order those that its scorers and diversity added."""
    first, behind = columns.index(CLIP_SCORE) + 1, columns.index("sha256")
    return list(columns[first:behind])


def ranks_by(columns: Sequence[str]) -> str:
    """Of a dataset's columns in their order the score that its candidates are ranked by: CLIP's, unless others have their say."""
    return RANK_SCORE if RANK_SCORE in ranking_names(columns) else CLIP_SCORE


def make_table(rows: Iterable[Mapping[str, Any]], form: pa.Schema) -> pa.Table:
    """Rows as a table, in the order of their keys. What a row does not say is null.

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
    """A table as a Parquet file, its rows as they stand; the same bytes however the table was put together."""
    file = io.BytesIO()
    # Where chunks end would decide where pages end.
    whole = table.combine_chunks()
    pq.write_table(whole, file, compression="zstd", compression_level=3, row_group_size=65_536, version="2.6")
    return file.getvalue()


def read_table(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file of ours.

    Args:
        content: The whole file.
        columns: Those to read, where not all are wanted; only these have to be there.

    Raises:
        ValueError: It is truncated, altered beyond reading, or lacks one of our columns; a column of ours has another type or
            occurs twice; or it would become larger in memory than a file of this size of ours may.
    """
    # One thread: callers that hurry read several files at a time.
    table = read_parquet(content, columns and list(columns), use_threads=columns is None)
    missing = [name for name in columns or COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"lacks the columns {', '.join(missing)}")
    _check_types(table.schema)
    return table


def _check_types(form: pa.Schema) -> None:
    """Raise ValueError where a column that is there has another type than ours, or is there twice."""
    if len(set(form.names)) < len(form.names):
        raise ValueError("has a column twice")
    ours: dict[str, pa.DataType] = {**COLUMNS, DRAFT_SCORES: pa.list_(pa.float32()), SPARED: pa.int32()}
    if CLIP_SCORE in form.names and "sha256" in form.names:
        scores = {RANK_SCORE: pa.float32(), REJECTED_FOR: pa.string()}
        ours |= {name: scores[name] for name in ranking_names(form.names) if name in scores}
    for name, kind in ours.items():
        if name in form.names and form.field(name).type != kind:
            raise ValueError(f"its column {name} is {form.field(name).type}, not {kind}")
    if EMBEDDING in form.names and not _is_vector(form.field(EMBEDDING).type):
        raise ValueError(f"its column {EMBEDDING} is {form.field(EMBEDDING).type}, not lists of one length of halffloat")


def _is_vector(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type) and kind.list_size > 0)
