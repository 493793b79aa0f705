"""Assembles a shard from its parts: the tar, the Parquet file and, last, the commit record that publishes both."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from promptmill.configs.columns import CONTROL_MAPS, STAGE0, Stated
from promptmill.shards.bundles import BundleError, beside, captions, entry, unpacked
from promptmill.shards.commits import CommitRecord, FileRecord, check_unopposed, commit, shard_name
from promptmill.shards.generations import taken_over
from promptmill.shards.outcomes import Outcomes, as_sum, count, counts_of
from promptmill.shards.parts import read_part
from promptmill.shards.prompt_texts import prompt_texts_of
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.storage import join, put
from promptmill.shards.tables import IMAGE, encode_table, make_table
from promptmill.shards.tars import Sample, write_tar


class AssemblyError(ValueError):
    """Reports parts that do not make up the planned shard: an error in promptmill, not of the user."""


@dataclass(frozen=True)
class Assembly:
    """Lists the parts and rows that a shard is assembled from, and the counts that have to come of it.

    Attributes:
        shard: The shard's number, from 0.
        parts: Names of all parts of the shard.
        failed: Metadata rows of the requests that no part has, since the manifest's row makes no request.
        requests: Number of requests that the plan gives the shard.
        planned: Number of candidates that the plan gives the shard.
        generation: 0, or how often failed rows were tried again.
        before: The commit record of the generation that is there, whose rows are taken over; None for a new shard.
        again: Rows of `before`, counted from 0 in the shard, that are not taken over, since the parts have them.
        others: Names of parts of the shard that it is not assembled from.
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
    """Assemble and publish a shard; repeated, with the parts in any order, the call changes nothing.

    Args:
        output: The dataset's URI.
        made_of: What the shard is assembled from.
        form: The schema of the metadata.
        image_format: The ending of image files, without the dot.
        fingerprint: The plan's fingerprint.

    Returns:
        The commit record that was published.

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
    """Publish a shard of all its rows; repeated, the call changes nothing.

    Args:
        table: The shard's metadata, in the order of the keys.
        images: The image files of kept candidates, by key; packed with their control maps where the table has a column of these.

    The other arguments, the result and the errors are those of `assemble`.
    """
    files = {key: _files(shard, key, cell, table.column_names) for key, cell in images.items()}
    _check_rows(shard, table, files)
    counts = _settled(shard, table, requests, planned)

    name = shard_name(shard, generation)
    content = {f"metadata/{name}.parquet": encode_table(table)}
    if counts.kept:
        tar = write_tar(_samples(table.filter(table["selected"]), files, image_format))
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
    """Return all rows of a shard in the order of their keys, and the images by key: those of the parts, beside those of `base`."""
    tables, images = [base[0]], base[1]
    for part in parts:
        rows = read_part(output, part, form, fingerprint)
        # One part at a time, so that no image is in memory twice.
        shown = rows.select(["key", IMAGE]).filter(pc.is_valid(rows[IMAGE]))
        images.update(zip(shown["key"].to_pylist(), shown[IMAGE].to_pylist(), strict=True))
        tables.append(rows.drop_columns([IMAGE]))
    table = pa.concat_tables(tables).replace_schema_metadata(form.metadata)
    return table.take(pc.sort_indices(table["key"])), images


def _files(shard: int, key: str, cell: bytes, columns: Sequence[str]) -> tuple[bytes, tuple[bytes, ...]]:
    try:
        return unpacked(cell, columns)
    except BundleError as error:
        raise AssemblyError(f"shard {shard:06d}: {key}: {error}") from None


def _check_rows(shard: int, table: pa.Table, images: Mapping[str, tuple[bytes, tuple[bytes, ...]]]) -> None:
    previous = None
    columns = (table[name].to_pylist() for name in ("key", "shard", "status", "selected", "sha256"))
    for key, its_shard, status, selected, sha256, said in zip(*columns, _beside(table), strict=True):
        wrong = None
        if key == previous:
            wrong = "occurs twice"
        elif its_shard != shard or not key.startswith(f"{shard:06d}-"):
            wrong = f"is of another shard, {its_shard}"
        elif bool(selected) != (status == "kept"):
            wrong = f"is {status}, but selected is {selected}"
        elif (key in images) != (status == "kept"):
            wrong = f"is {status}, but has {'an' if key in images else 'no'} image"
        elif key in images and hashlib.sha256(images[key][0]).hexdigest() != sha256:
            wrong = f"its image does not have the SHA-256 of its row, {sha256}"
        elif key in images and [*map(entry, images[key][1])] != [*said.values()]:
            wrong = "the files beside its image do not have the SHA-256 of its row"
        if wrong:
            raise AssemblyError(f"shard {shard:06d}: {key}: {wrong}")
        previous = key


def _settled(shard: int, table: pa.Table, requests: int, planned: int) -> Outcomes:
    """Return the counts of a shard, once they are those of the plan: requests in = requests settled."""
    try:
        counts = count(table)
    except ValueError as error:
        raise AssemblyError(f"shard {shard:06d}: {error}") from None
    if counts.requests != requests:
        raise AssemblyError(f"shard {shard:06d}: {counts.requests} requests are settled of {requests} planned")
    if counts.candidates != planned:
        raise AssemblyError(f"shard {shard:06d}: {as_sum(counts)} are not the {planned} candidates planned")
    return counts


def _samples(kept: pa.Table, images: Mapping[str, tuple[bytes, tuple[bytes, ...]]], image_format: str) -> Iterator[Sample]:
    columns = kept["key"].to_pylist(), prompt_texts_of(kept), encode_rows(kept), _beside(kept), captions(kept)
    for key, text, described, said, written in zip(*columns, strict=True):
        image, others = images[key]
        files = {image_format: image, "txt": text.encode(), "json": described, **written}
        yield Sample(key, {**files, **dict(zip(said, others, strict=True))})


def _beside(table: pa.Table) -> list[dict[str, Mapping[str, Any]]]:
    """Return for each row the files beside its image, as `bundles.beside` has them."""
    names = [name for name in (CONTROL_MAPS, STAGE0) if name in table.column_names]
    return [beside(row) for row in table.select(names).to_pylist()] if names else [{}] * len(table)
