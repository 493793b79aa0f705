"""Makes a shard of its parts: its tar, its Parquet and, last, the record that publishes both."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from promptmill.configs.columns import Stated
from promptmill.shards.commits import CommitRecord, FileRecord, check_unopposed, commit, shard_name
from promptmill.shards.generations import taken_over
from promptmill.shards.outcomes import Outcomes, as_sum, count, counts_of
from promptmill.shards.parts import read_part
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.storage import join, put
from promptmill.shards.tables import IMAGE, encode_table, make_table
from promptmill.shards.tars import Sample, write_tar


class AssemblyError(ValueError):
    """Parts that do not make up the shard that was planned: an error in promptmill, not of the user."""


@dataclass(frozen=True)
class Assembly:
    """Says what a shard is made of, and what has to come of it.

    Attributes:
        shard: Its number.
        parts: The names of all its parts.
        failed: Metadata rows of the requests that no part has, since they never made it past the manifest.
        requests: How many the plan gives this shard.
        planned: How many candidates.
        generation: 0, or how often failed rows were tried again.
        before: The record of the generation that is there, whose rows are taken over.
        again: But for these, counted from 0 in the shard, which the parts have.
        others: The names of parts of the shard that it is not made of.
    """

    shard: int
    parts: Sequence[str]
    failed: Sequence[Mapping[str, Any]]
    requests: int
    planned: int
    generation: int = 0
    before: CommitRecord | None = None
    again: Collection[int] = ()
    others: Sequence[str] = ()


def assemble(output: str, made_of: Assembly, form: pa.Schema, image_format: str, fingerprint: str) -> CommitRecord:
    """Publish a shard. Doing it again, with the parts in any order, changes nothing.

    Args:
        output: The dataset's URI.
        made_of: What goes into the shard.
        form: The metadata's schema.
        image_format: The ending of image files.
        fingerprint: Of the plan.

    Raises:
        AssemblyError: Not exactly the planned requests and candidates are settled, or a row contradicts itself.
        PartError, FileNotFoundError: As `read_part`.
        StorageError: The output cannot be read or written.
        CommitError: The shard is committed already, with other content; then its files are left as they are.
    """
    before, failed = made_of.before, made_of.failed
    base, kept = taken_over(output, before, made_of.again, form) if before else (form.empty_table(), dict[str, bytes]())
    base = pa.concat_tables([base, make_table(failed, form)]) if failed else base
    table, images = _gather(output, made_of.parts, (base, kept), form, fingerprint)
    requests, planned = made_of.requests, made_of.planned
    return publish(output, made_of.shard, table, images, image_format, requests, planned, fingerprint, made_of.generation)


def publish(
    output: str,
    shard: int,
    table: pa.Table,
    images: Mapping[str, bytes],
    image_format: str,
    requests: int,
    planned: int,
    fingerprint: str,
    generation: int = 0,
) -> CommitRecord:
    """Publish a shard of all its rows. Doing it again changes nothing.

    Args:
        table: Its metadata, in the order of the keys.
        images: The image files of the kept, by key.

    Others and errors as in `assemble`.
    """
    _check_rows(shard, table, images)
    counts = _settled(shard, table, requests, planned)

    name = shard_name(shard, generation)
    content = {f"metadata/{name}.parquet": encode_table(table)}
    if counts.kept:
        tar = write_tar(_samples(table.filter(table["selected"]), images, image_format))
        content = {f"data/{name}.tar": tar, **content}
    record = CommitRecord(
        shard=shard,
        generation=generation,
        files=tuple(FileRecord.of(path, bytes_) for path, bytes_ in content.items()),
        fingerprint=fingerprint,
        format=Stated.of(table.schema).format,
        **counts_of(counts),
    )
    check_unopposed(output, record)
    for path, bytes_ in content.items():
        put(join(output, path), bytes_)
    commit(output, record)
    return record


def _gather(
    output: str, parts: Sequence[str], base: tuple[pa.Table, dict[str, bytes]], form: pa.Schema, fingerprint: str
) -> tuple[pa.Table, dict[str, bytes]]:
    """All rows in the order of their keys, and the images by key: those of the parts, beside others."""
    tables, images = [base[0]], base[1]
    for part in parts:
        rows = read_part(output, part, form, fingerprint)
        # One part at a time, so that no image is in memory twice.
        shown = rows.select(["key", IMAGE]).filter(pc.is_valid(rows[IMAGE]))
        images.update(zip(shown["key"].to_pylist(), shown[IMAGE].to_pylist(), strict=True))
        tables.append(rows.drop_columns([IMAGE]))
    table = pa.concat_tables(tables).replace_schema_metadata(form.metadata)
    return table.take(pc.sort_indices(table["key"])), images


def _check_rows(shard: int, table: pa.Table, images: Mapping[str, bytes]) -> None:
    previous = None
    columns = (table[name].to_pylist() for name in ("key", "shard", "status", "selected", "sha256"))
    for key, its_shard, status, selected, sha256 in zip(*columns, strict=True):
        wrong = None
        if key == previous:
            wrong = "occurs twice"
        elif its_shard != shard or not key.startswith(f"{shard:06d}-"):
            wrong = f"is of another shard, {its_shard}"
        elif bool(selected) != (status == "kept"):
            wrong = f"is {status}, but selected is {selected}"
        elif (key in images) != (status == "kept"):
            wrong = f"is {status}, but has {'an' if key in images else 'no'} image"
        elif key in images and hashlib.sha256(images[key]).hexdigest() != sha256:
            wrong = f"its image does not have the SHA-256 of its row, {sha256}"
        if wrong:
            raise AssemblyError(f"shard {shard:06d}: {key}: {wrong}")
        previous = key


def _settled(shard: int, table: pa.Table, requests: int, planned: int) -> Outcomes:
    """The counts, once they are those of the plan: requests in = requests settled."""
    try:
        counts = count(table)
    except ValueError as error:
        raise AssemblyError(f"shard {shard:06d}: {error}") from None
    if counts.requests != requests:
        raise AssemblyError(f"shard {shard:06d}: {counts.requests} requests are settled of {requests} planned")
    if counts.candidates != planned:
        raise AssemblyError(f"shard {shard:06d}: {as_sum(counts)} are not the {planned} candidates planned")
    return counts


def _samples(kept: pa.Table, images: Mapping[str, bytes], image_format: str) -> Iterator[Sample]:
    columns = (kept[name].to_pylist() for name in ("key", "prompt"))
    for key, prompt, described in zip(*columns, encode_rows(kept), strict=True):
        yield Sample(key, {image_format: images[key], "txt": (prompt or "").encode(), "json": described})
