"""Reads the published files of a shard, each held against its commit record before anything in it is believed."""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa

from shards.commits import CommitError, CommitRecord, FileRecord
from shards.storage import get, join
from shards.tables import check_keys, read_table
from shards.tars import TarError, read_tar


@dataclass(frozen=True)
class ImageFile:
    """An image as it was published: the ending of its name, without the dot, and its bytes."""

    ending: str
    content: bytes


def read_metadata(output: str, record: CommitRecord) -> pa.Table:
    """The rows of a committed shard.

    Raises:
        CommitError: Their file is not what the record says.
    """
    try:
        return check_keys(read_table(read_file(output, record, "metadata")))
    except ValueError as error:
        raise CommitError(f"{path_of(output, record, 'metadata')}: {error}") from None


def read_images(output: str, record: CommitRecord, wanted: Collection[str]) -> dict[str, ImageFile]:
    """The image files of a committed shard by key, of those keys that are wanted and were kept.

    Raises:
        CommitError: The tar is not what the record says.
    """
    if not wanted:
        return {}
    images = {}
    try:
        for sample in read_tar(read_file(output, record, "data")):
            if sample.key in wanted:
                endings = set(sample.files) - {"txt", "json"}
                if len(endings) != 1:
                    raise TarError(f"{sample.key}: has the members {', '.join(sorted(sample.files))}")
                (ending,) = endings
                images[sample.key] = ImageFile(ending, sample.files[ending])
    except TarError as error:
        raise CommitError(f"{path_of(output, record, 'data')}: {error}") from None
    return images


def read_file(output: str, record: CommitRecord, folder: str) -> bytes:
    """A file of a shard, whole and as its record says.

    Raises:
        CommitError: It is not.
    """
    for file in record.files:
        if file.path.startswith(f"{folder}/"):
            content = _there(join(output, file.path))
            if FileRecord.of(file.path, content) == file:
                return content
    raise CommitError(f"{path_of(output, record, folder)}: missing or altered; `promptmill verify --repair` makes its shard again")


def path_of(output: str, record: CommitRecord, folder: str) -> str:
    """Where the record says that a shard's file in `data` or `metadata` lies."""
    return join(output, next((file.path for file in record.files if file.path.startswith(f"{folder}/")), folder))


def _there(uri: str) -> bytes:
    try:
        return get(uri)
    except FileNotFoundError:
        return b""
