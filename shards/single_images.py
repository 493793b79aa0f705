"""Reads single images of a published shard without reading its tar.

A tar is its rows, so where an image lies follows from the lengths of what stands before it.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa

from promptmill.configs.columns import CONTROL_MAPS, STAGE0
from promptmill.shards.bundles import beside, captions
from promptmill.shards.commits import FileRecord
from promptmill.shards.prompt_texts import prompt_texts_of
from promptmill.shards.sidecars import encode_rows
from promptmill.shards.storage import OddFileError, StorageError, get, get_range, join
from promptmill.shards.tars import BLOCK, TarError, read_tar


@dataclass(frozen=True)
class Place:
    """Says where an image lies in its tar.

    Attributes:
        name: The name of the tar's member.
        start: The place of the member's header in bytes; the header is a block long, and the image follows.
        size, sha256: Size in bytes and SHA-256 of the image file.
    """

    name: str
    start: int
    size: int
    sha256: str


def places(table: pa.Table, image_format: str) -> Iterator[tuple[str, Place]]:
    """Yield the key of each selected row, and where its image lies, in the order of the tar.

    Args:
        table: The whole metadata of a shard.
        image_format: The ending of its images, without the dot.
    """
    kept, at = table.filter(table["selected"]), 0
    columns = (kept[name].to_pylist() for name in ("key", "bytes", "sha256"))
    names = [name for name in (CONTROL_MAPS, STAGE0) if name in kept.column_names]
    others = [beside(row) for row in kept.select(names).to_pylist()] if names else [{}] * len(kept)
    texts = prompt_texts_of(kept), encode_rows(kept), captions(kept)
    for key, size, sha256, said, text, described, written in zip(*columns, others, *texts, strict=True):
        sizes = {image_format: size, "json": len(described), "txt": len(text.encode())}
        sizes |= {name: one.get("bytes") or 0 for name, one in said.items()} | {name: len(one) for name, one in written.items()}
        for ending in sorted(sizes):
            if ending == image_format:
                yield key, Place(f"{key}.{ending}", at, size, sha256)
            at += BLOCK + -(-sizes[ending] // BLOCK) * BLOCK


def pick(output: str, tar: FileRecord, table: pa.Table, image_format: str, keys: Collection[str]) -> dict[str, bytes]:
    """Return image files by key, each read as one range of the tar; those that are not what their rows say are left out.

    A tar that is laid out otherwise, as another version may have written it, is read whole, once.

    Args:
        output: The dataset's URI.
        tar: The shard's tar, as its commit record has it.
        table: The whole metadata of the shard.
        image_format: The ending that its images should have, without the dot.
        keys: Keys of the images that are wanted.

    Raises:
        FileNotFoundError: There is no such tar.
        OddFileError: The tar is larger than its record says, or no regular file.
        StorageError: The storage fails.
    """
    wanted = {key: place for key, place in places(table, image_format) if key in keys}
    found = {}
    for key, place in wanted.items():
        image = _in_place(join(output, tar.path), place) if _fits(place, tar.size) else None
        if image is None:
            return _in_the_whole(get(join(output, tar.path), most=tar.size), wanted)
        found[key] = image
    return found


def _fits(place: Place, size: int) -> bool:
    """Return whether a place is inside of a tar of this size: a row may say any length of its image."""
    return place.size >= 0 and place.start >= 0 and place.start + BLOCK + place.size <= size


def _in_place(uri: str, place: Place) -> bytes | None:
    try:
        content = get_range(uri, place.start, place.start + BLOCK + place.size)
    except OddFileError:
        raise
    except StorageError:
        return None  # a storage may refuse a range beyond the end of a tar that was cut
    name, image = content[:100].rstrip(b"\0"), content[BLOCK:]
    return image if name == place.name.encode() and hashlib.sha256(image).hexdigest() == place.sha256 else None


def _in_the_whole(content: bytes, wanted: dict[str, Place]) -> dict[str, bytes]:
    found = {}
    try:
        for sample in read_tar(content):
            for image in sample.files.values():
                if sample.key in wanted and hashlib.sha256(image).hexdigest() == wanted[sample.key].sha256:
                    found[sample.key] = image
    except TarError:
        pass  # what was read before its end is whole
    return found
