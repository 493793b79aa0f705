"""Reads the published files of a shard, each held against its commit record before anything in it is believed.

The dataset may be somebody else's. So a file is read only under the name that its shard gives it, where it is a regular file and no
larger than its record says; rows have keys of their shard, which may name files, and images are of the formats of datasets.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from promptmill.configs.errors import shown
from promptmill.shards.bundles import CAPTION_NAME, beside_in, is_bundled, pack
from promptmill.shards.commits import CommitError, CommitRecord, FileRecord
from promptmill.shards.image_reader import ENDINGS, is_of
from promptmill.shards.keys import check_keys
from promptmill.shards.storage import OddFileError, TooLargeError, get, join
from promptmill.shards.tables import read_table
from promptmill.shards.tars import TarError, read_tar


@dataclass(frozen=True)
class ImageFile:
    """Holds an image as it was published: the ending of its name, without the dot, its bytes, and the files beside it."""

    ending: str
    content: bytes
    beside: tuple[bytes, ...] = ()

    def packed(self, columns: Sequence[str]) -> bytes:
        """Return the image as the cell of a part, in a dataset of these columns."""
        return pack(self.content, self.beside) if is_bundled(columns) else self.content


def read_metadata(output: str, record: CommitRecord) -> pa.Table:
    """Return the rows of a committed shard.

    Raises:
        CommitError: The Parquet file is not what the record says, or is not what promptmill writes.
    """
    content = read_file(output, record, "metadata")
    try:
        return parse_metadata(content, record.shard)
    except ValueError as error:
        raise CommitError(f"{path_of(output, record, 'metadata')}: {error}") from None


def parse_metadata(content: bytes, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a shard's Parquet file.

    Args:
        content: The bytes of the whole file.
        shard: The shard's number.
        columns: Names of the columns to read, `key` among them; None for all.

    Raises:
        ValueError: The file cannot be read, lacks a column, has one of another type, or has a row without a key of the shard.
    """
    table = read_table(content, columns)
    check_keys(table["key"], shard)
    return table


def read_images(output: str, record: CommitRecord, wanted: Collection[str]) -> dict[str, ImageFile]:
    """Return the image files of a committed shard by key, of those keys that are wanted and were kept.

    Raises:
        CommitError: The tar is not what the record says, or a sample has no image, several, or one of another format than datasets
            have.
    """
    if not wanted:
        return {}
    images = {}
    path = path_of(output, record, "data")
    try:
        for sample in read_tar(read_file(output, record, "data")):
            if sample.key in wanted:
                others = beside_in(sample.files)
                endings = sorted(sample.files.keys() - {"txt", "json", CAPTION_NAME, *others})
                if len(endings) != 1 or endings[0] not in ENDINGS:
                    has = shown(", ".join(sorted(sample.files)))
                    raise CommitError(f"{path}: {sample.key}: has the members {has}, where one is an image ({', '.join(ENDINGS)})")
                images[sample.key] = ImageFile(endings[0], sample.files[endings[0]], tuple(sample.files[name] for name in others))
                if not is_of(images[sample.key].content, endings[0]):
                    raise CommitError(f"{path}: {sample.key}: its image is no {ENDINGS[endings[0]]}, as its name says")
    except TarError as error:
        raise CommitError(f"{path}: {error}") from None
    return images


def read_file(output: str, record: CommitRecord, folder: str) -> bytes:
    """Return a file of a shard, whole and as its record says.

    Args:
        folder: The folder that the file is in, `data` or `metadata`.

    Raises:
        CommitError: The file is missing, is no regular one, or is not as the record says.
    """
    file = record.file(folder)
    try:
        content = get_file(output, file) if file else b""
    except FileNotFoundError:
        content = b""
    except OddFileError as error:
        raise CommitError(f"{path_of(output, record, folder)}: {error.said}; {REPAIR}") from None
    if file is None or FileRecord.of(file.path, content) != file:
        raise CommitError(f"{path_of(output, record, folder)}: missing or altered; {REPAIR}")
    return content


REPAIR = "`promptmill verify --repair` makes its shard again"


def get_file(output: str, file: FileRecord) -> bytes:
    """Return the content of a published file, which may still be another than its record says, but is no larger.

    Raises:
        FileNotFoundError: The file is not there.
        OddFileError: The file is larger than its record says, or no regular file.
        StorageError: The file cannot be read.
    """
    try:
        return get(join(output, file.path), most=file.size)
    except TooLargeError as error:
        said = f"is of {error.size:,} bytes, its record says {file.size:,}"
        raise OddFileError(join(output, file.path), said) from None


def path_of(output: str, record: CommitRecord, folder: str) -> str:
    """Return where a shard's file in `data` or `metadata` lies, from the output."""
    return join(output, record.paths.get(folder, folder))
