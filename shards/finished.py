"""Reads datasets, shard by shard, as their records have them: rows as Arrow tables, kept images as files or pictures.

All that reads a dataset after it was rendered goes through here: figures, reports, sheets, exports and the Python API. A file is
held against its record before anything in it is believed; only `glance` takes a shard's rows as they lie there, for those that are
to show what is damaged rather than refuse it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

from promptmill.shards.commits import CommitError, CommitRecord, last_record, read_records
from promptmill.shards.image_reader import PictureError, open_picture, read_picture
from promptmill.shards.published import ImageFile, get_file, parse_metadata, path_of, read_file, read_images
from promptmill.shards.storage import OddFileError
from promptmill.shards.tables import schema


class UnreadableError(ValueError):
    """A shard's metadata that cannot be read as it lies there; the message names the file."""


@dataclass(frozen=True)
class Kept:
    """One kept image.

    Attributes:
        row: Of the metadata, by column.
        file: As it was published.
        tar: Where it lies, for what is said of it.
    """

    row: dict[str, Any]
    file: ImageFile
    tar: str

    @property
    def key(self) -> str:
        return str(self.row["key"])

    def picture(self) -> Image.Image:
        """Return the image, decoded, in mode RGB.

        Raises:
            CommitError: It is of another format or size than its row says, or cannot be decoded.
        """
        try:
            return read_picture(self.file.content, self.file.ending, self.row["width"], self.row["height"])
        except PictureError as error:
            raise CommitError(f"{self.tar}: {self.key}: its image {error}") from None

    def check(self) -> None:
        """Raise CommitError where the image is of another format or size than its row says; it is not decoded."""
        try:
            with open_picture(self.file.content, self.file.ending, self.row["width"], self.row["height"]):
                pass
        except PictureError as error:
            raise CommitError(f"{self.tar}: {self.key}: its image {error}") from None


@dataclass(frozen=True)
class ShardReader:
    """Reads one committed shard.

    Attributes:
        output: The dataset's URI.
        record: Of the shard.
    """

    output: str
    record: CommitRecord

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the shard's rows.

        Args:
            columns: Those wanted, in their order; None: all.

        Raises:
            CommitError: The file is not what the record says, lacks a column, or is not what promptmill writes.
        """
        content = read_file(self.output, self.record, "metadata")
        try:
            return _chosen(content, self.record.shard, columns)
        except ValueError as error:
            raise CommitError(f"{path_of(self.output, self.record, 'metadata')}: {error}") from None

    def glance(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the shard's rows as they lie there, whether or not the record's hash is theirs; arguments as for `table`.

        Raises:
            UnreadableError: They are not there, or cannot be read; a line with the file's path in the dataset.
            StorageError: The storage fails.
        """
        file = self.record.file("metadata")
        if file is None:
            raise UnreadableError(f"commits: the record of shard {self.record.shard:06d} names no metadata")
        try:
            return _chosen(get_file(self.output, file), self.record.shard, columns)
        except FileNotFoundError:
            raise UnreadableError(f"{file.path}: missing") from None
        except OddFileError as error:
            raise UnreadableError(f"{file.path}: {error.said}") from None
        except (ValueError, TypeError, LookupError, pa.ArrowException) as error:
            raise UnreadableError(f"{file.path}: {' '.join(str(error).split())[:200]}") from None

    def files(self, keys: Collection[str]) -> dict[str, ImageFile]:
        """Return the image files of these kept candidates, by key.

        Raises:
            CommitError: The tar is not what the record says, or lacks one of them.
        """
        found = read_images(self.output, self.record, keys)
        if lost := sorted(set(keys) - set(found)):
            way = f"`promptmill verify {self.output}`"
            raise CommitError(f"{path_of(self.output, self.record, 'data')}: {lost[0]}: kept, but not in its shard; {way}")
        return found

    def kept(self, most: int | None = None) -> Iterator[Kept]:
        """Yield the kept images in the order of their keys, at most so many.

        Raises:
            CommitError: As `table` and `files`.
        """
        if not self.record.kept:
            return
        table = self.table()
        rows = table.filter(table["selected"]).slice(0, most).to_pylist()
        files = self.files([row["key"] for row in rows])
        tar = path_of(self.output, self.record, "data")
        yield from (Kept(row, files[row["key"]], tar) for row in rows)


def _chosen(content: bytes, shard: int, columns: Sequence[str] | None) -> pa.Table:
    # The keys are checked, whether they are wanted or not.
    table = parse_metadata(content, shard, None if columns is None else list(dict.fromkeys(["key", *columns])))
    return table if columns is None else table.select(list(columns))


def shards(output: str) -> Iterator[ShardReader]:
    """Yield a reader of each committed shard, in their order; of a dataset that is not finished, too.

    Raises:
        CommitError: A record is broken.
    """
    yield from (ShardReader(output, record) for record in read_records(output))


def shard(output: str, number: int) -> ShardReader:
    """Return the reader of one shard.

    Raises:
        CommitError: Its record is broken.
        FileNotFoundError: It is not committed.
    """
    return ShardReader(output, last_record(output, number))


def batches(output: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a dataset, one a candidate, kept or not, and one for each request that failed; one shard is in memory.

    Args:
        output: The dataset's URI.
        columns: Those wanted, in their order; None: all.

    Raises:
        CommitError: A record or a file is not what promptmill writes, or lacks a column.
    """
    for reader in shards(output):
        yield from reader.table(columns).to_batches()


def table(output: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return all rows of a dataset; arguments and errors as for `batches`. Without a committed shard it has no rows."""
    found = list(batches(output, columns))
    if found:
        return pa.Table.from_batches([batch.cast(found[0].schema) for batch in found], found[0].schema)
    empty = schema({}, None).empty_table()
    return empty if columns is None else empty.select(list(columns))


def images(output: str, selected: bool = True) -> Iterator[tuple[str, Image.Image | None, dict[str, Any]]]:
    """Yield key, image and row of each candidate, in the order of their keys; one shard is in memory.

    Args:
        output: The dataset's URI.
        selected: Only those whose images were kept; otherwise every row of the metadata, the image None where there is none.

    Yields:
        The key; the image in mode RGB, of the width and height of its row in pixels; the row by column.

    Raises:
        CommitError: A record, a file or an image is not what promptmill writes.
    """
    for reader in shards(output):
        shown = {one.key: one for one in reader.kept()}
        if selected:
            yield from ((key, one.picture(), one.row) for key, one in shown.items())
            continue
        for row in reader.table().to_pylist():
            yield row["key"], shown[row["key"]].picture() if row["key"] in shown else None, row
