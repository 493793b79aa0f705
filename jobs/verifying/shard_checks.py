"""Holds a shard's Parquet file, tar and images against one another, and names what of them contradicts itself."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from promptmill.configs.columns import CONTROL_MAPS, STAGE0, SYNTAX, WORDS
from promptmill.shards.bundles import CAPTION_NAME, beside, beside_in, captions, entry
from promptmill.shards.image_files import FORMATS, pixel_sha256
from promptmill.shards.image_reader import ENDINGS, PictureError, open_picture
from promptmill.shards.keys import parse
from promptmill.shards.outcomes import request_of
from promptmill.shards.prompt_texts import prompt_text_of
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.tables import declared_in
from promptmill.shards.tars import Sample, TarError, read_tar


def rendered_ids(table: pa.Table) -> Iterator[str]:
    """Yield the id of each request that was rendered at all.

    A request that the manifest repeats is recorded as failed, under the same id.
    """
    previous = None
    for key, request_id, candidate in zip(*(table[name].to_pylist() for name in ("key", "id", "candidate_index")), strict=True):
        if key is not None and candidate is not None and request_of(key) != previous:
            previous = request_of(key)
            yield str(request_id)


def check_table(table: pa.Table, shard: int) -> Iterator[str]:
    """Yield the faults in keys, ids and statuses of one shard's rows."""
    columns = ("key", "id", "candidate_index", "shard", "status", "selected")
    previous = ""
    request_ids: dict[str, Any] = {}
    for key, request_id, candidate, its_shard, status, selected in zip(*(table[name].to_pylist() for name in columns), strict=True):
        if key is None or not _fits(key, shard, candidate) or its_shard != shard:
            yield f"{key}: is not the key of candidate {candidate} in shard {shard}"
            continue
        if key == previous:
            yield f"{key}: occurs twice"
        elif key < previous:
            yield f"{key}: stands behind {previous}"
        previous = key
        if bool(selected) != (status == "kept"):
            yield f"{key}: is {status}, but selected is {selected}"
        if request_ids.setdefault(request_of(key), request_id) != request_id:
            yield f"{key}: its id is {request_id!r}, another candidate's of this request {request_ids[request_of(key)]!r}"


def _fits(key: str, shard: int, candidate: int | None) -> bool:
    found = parse(key)
    return found is not None and (found[0], found[2]) == (shard, candidate)


def check_tar(content: bytes, table: pa.Table | None) -> Iterator[str]:
    """Yield the faults of a shard's tar, held against its metadata where there is any."""
    rows = _rows(table) if table is not None else None
    found: list[str] = []
    image_ending = None
    try:
        for sample in read_tar(content):
            found.append(sample.key)
            others = beside_in(sample.files)
            texts = {"json", "txt", *(CAPTION_NAME for name in sample.files if name == CAPTION_NAME)}
            images = set(sample.files) - {*texts, *others}
            said = len(texts) + len(others)
            if len(sample.files) != 1 + said or not images <= ENDINGS.keys() or images != {image_ending or min(images)}:
                yield f"{sample.key}: has the members {', '.join(sorted(sample.files))}"
                continue
            (image_ending,) = images
            if rows is not None and sample.key in rows:
                yield from (f"{sample.key}: {problem}" for problem in _check_sample(sample, image_ending, rows[sample.key]))
    except TarError as error:
        yield str(error)
        return
    if rows is None:
        return
    lacking, surplus = _only(rows, set(found)), _only(found, set(rows))
    if lacking:
        yield f"lacks {len(lacking)} of the selected rows of its Parquet, first {lacking[0]}"
    if surplus:
        yield f"has {len(surplus)} samples that its Parquet does not select, first {surplus[0]}"
    if not lacking and not surplus and found != list(rows):
        yield "its samples are in another order than the rows of its Parquet"


def _only(keys: Iterable[str], others: set[str]) -> list[str]:
    return [key for key in keys if key not in others]


def _rows(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Return the samples that the tar has to hold, by key: of each selected row its prompt, its JSON and its hashes."""
    selected = table.filter(table["selected"])
    names_ = ["key", "prompt", "sha256", "pixel_sha256", "bytes", "width", "height"]
    names_ += [name for name in (CONTROL_MAPS, STAGE0, SYNTAX, WORDS) if name in declared_in(table.schema)]
    columns = selected.select(names_).to_pylist(), encode_rows(selected), captions(selected)
    return {row["key"]: {**row, "json": described, "caption": written} for row, described, written in zip(*columns, strict=True)}


def _check_sample(sample: Sample, ending: str, row: dict[str, Any]) -> Iterator[str]:
    image = sample.files[ending]
    if {name: entry(sample.files[name]) for name in beside_in(sample.files)} != beside(row):
        yield "the files beside its image are not those of its row"
    if sample.files["txt"] != prompt_text_of(row).encode():
        yield "its text is not the prompt of its row"
    if {name: text for name, text in sample.files.items() if name == CAPTION_NAME} != row["caption"]:
        yield "its caption is not that of its row"
    if sample.files["json"] != row["json"]:
        yield "its JSON is not its row"
    if hashlib.sha256(image).hexdigest() != row["sha256"]:
        yield "its image does not have the SHA-256 of its row"
    elif len(image) != row["bytes"]:
        yield f"its image is of {len(image):,} bytes, its row says {row['bytes']}"
    else:
        yield from _check_pixels(image, ending, row)


def _check_pixels(content: bytes, ending: str, row: dict[str, Any]) -> Iterator[str]:
    try:
        with open_picture(content, ending, row["width"], row["height"]) as image:
            if FORMATS[ending].lossless(content) and pixel_sha256(np.asarray(image.convert("RGB"))) != row["pixel_sha256"]:
                yield "the pixels of its image do not have the hash of its row"
    except PictureError as error:
        yield f"its image {error}"
