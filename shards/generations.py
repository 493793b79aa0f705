"""Hands on the rows and images that the next generation of a shard takes over from the one that is there."""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from promptmill.shards.commits import CommitError, CommitRecord, record_uri, shard_name
from promptmill.shards.outcomes import row_of
from promptmill.shards.published import path_of, read_file, read_images, read_metadata
from promptmill.shards.storage import delete, join


def failed_rows(output: str, record: CommitRecord, codes: Collection[str]) -> frozenset[int]:
    """Return the rows of a committed shard, counted from 0, that failed with one of these codes, as a whole or in a candidate.

    Raises:
        CommitError: A file of the shard is not what the commit record says.
    """
    if not record.failed and not record.failed_requests:
        return frozenset()
    table = read_metadata(output, record).select(["key", "error"])
    failed = table.filter(pc.is_in(table["error"], pa.array(sorted(codes))))
    rows = frozenset(row_of(key) for key in failed["key"].to_pylist())
    if rows and record.kept:
        read_file(output, record, "data")  # found out now rather than once they are rendered
    return rows


def taken_over(output: str, record: CommitRecord, again: Collection[int], form: pa.Schema) -> tuple[pa.Table, dict[str, bytes]]:
    """Return the metadata of a committed shard and its images by key, as parts hold them, without rows that are rendered again.

    Args:
        output: The dataset's URI.
        record: The shard's commit record.
        again: Rows, counted from 0 in the shard, that are rendered again.
        form: The schema of the plan's metadata.

    Raises:
        CommitError: A file of the shard is not what the record says, or has other columns than `form`.
    """
    table = read_metadata(output, record)
    if table.schema.names != form.names:
        raise CommitError(f"{path_of(output, record, 'metadata')}: its columns are not those of this plan")
    kept = table.filter(pa.array([row_of(key) not in again for key in table["key"].to_pylist()], pa.bool_())).cast(form)
    wanted = set(kept.filter(kept["selected"])["key"].to_pylist())
    return kept, {key: image.packed(form.names) for key, image in read_images(output, record, wanted).items()}


def drop_earlier(output: str, shard: int, generation: int) -> None:
    """Delete the files of a shard's generations before this one, which is committed; a file that is gone already is no error."""
    for earlier in range(generation):
        name = shard_name(shard, earlier)
        # The record first: what no record names is swept, but a record without its files would be taken for damage.
        delete(record_uri(output, shard, earlier))
        delete(join(output, "data", f"{name}.tar"))
        delete(join(output, "metadata", f"{name}.parquet"))
