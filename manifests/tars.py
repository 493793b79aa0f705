"""Reads tars of images: a WebDataset as rows, and one member of a tar by its name without going through the others.

webdataset's own reader does not serve here: it loads every image whole, takes a damaged header for the end, decompresses bombs, and
reaches no single member.
"""

import functools
import itertools
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
import xxhash

from promptmill.configs.errors import shown
from promptmill.manifests.files import open_file, system_of
from promptmill.manifests.json_rows import parse_row
from promptmill.manifests.own_outputs import as_input, is_output
from promptmill.manifests.pointers import HEAD, pointer
from promptmill.manifests.requests import OWN_IMAGES
from promptmill.manifests.roots import IN_FILE
from promptmill.manifests.rows import MAX_ROW, ManifestError, NoRowsError, Values
from promptmill.manifests.samples import with_image

IN_TAR = IN_FILE  # between a tar and its member: file.tar::member
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
COMPRESSED = (".gz", ".bz2", ".xz", ".tgz")
INDEXED_TARS = 32  # at a time; 16 bytes a member


def refuse_compressed(file: str) -> None:
    """Raises tarfile.ReadError at a compressed tar."""
    if file.lower().endswith(COMPRESSED):
        raise tarfile.ReadError("the images in a compressed tar cannot be reached one by one; uncompress it")


def read_samples(file: str, stream: IO[bytes]) -> Iterator[Values]:
    """The samples of a WebDataset as rows: each image, as a member of the tar in its own folder, with the text and JSON of its key.

    The text is the prompt, the JSON any columns, which go before the text. The image is that of a control where the JSON has
    one without an image (`control_type`, or an entry of `controls`); otherwise it is the init_image.

    Raises:
        NoRowsError: The tar is empty.
        ManifestError: There is no image among its members.
        tarfile.TarError: It is no tar, truncated, or compressed.
    """
    refuse_compressed(file)
    empty, members_there = True, False
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for key, members in itertools.groupby(_members(tar), _key):
            members_there = True
            values = _sample(file, key, tar, members)
            if values is not None:
                empty = False
                yield values
    if empty:
        wrong = ManifestError if members_there else NoRowsError
        raise wrong(f"{file}: has no images ({' '.join(IMAGE_ENDINGS)}), each with a .txt or .json of its name beside it")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while member := tar.next():
        # It would remember all of them.
        tar.members = []  # type: ignore[attr-defined]
        if member.isfile():
            yield member
    # A broken header is taken for the end, which is an empty block or nothing.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {tar.offset:,}")


def _key(member: tarfile.TarInfo) -> str:
    # As in webdataset, the key ends at the first dot of the name.
    place = PurePosixPath(member.name)
    return str(place.parent / place.name.partition(".")[0])


def _sample(file: str, key: str, tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo]) -> Values | None:
    images: list[str] = []
    values: dict[str, Any] = {}
    described: Values = {}
    for member in members:
        ending = PurePosixPath(member.name).name.partition(".")[2].lower()
        if f".{ending}" in IMAGE_ENDINGS:
            images.append(member.name)
        elif ending in ("txt", "json"):
            packed = tar.extractfile(member)
            assert packed is not None  # it is a file
            try:
                text = packed.read(min(member.size, MAX_ROW)).decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                described = f"{shown(member.name)}: not UTF-8 (byte {error.object[error.start]:#04x})"
                continue
            if ending == "txt":
                values["prompt"] = text
            elif isinstance(described, dict):
                parsed = parse_row(text)
                described = f"{shown(member.name)}: {parsed}" if isinstance(parsed, str) else parsed
    if not images:
        return None
    if isinstance(described, str):
        return described
    if len(images) > 1:
        return f"{shown(' and '.join(images[:2]))} are two images of one sample; a sample has one"
    return {"id": key, **values, **_with_image(described, f"{PurePosixPath(file).name}{IN_TAR}{images[0]}")}


def _with_image(described: dict[str, Any], image: str) -> dict[str, Any]:
    """Return the columns of a sample's JSON, and its image where it belongs."""
    described = {name: value for name, value in described.items() if value is not None}
    if is_output(described):
        # Rendering on from our own image; what that one was made from is done with.
        described = {name: value for name, value in as_input(described).items() if name not in OWN_IMAGES}
    return with_image(described, image)


def read_member(file: str, member: str, most: int) -> bytes:
    """The content of a tar's member, of which there may be several of that name: the last, as tar has it.

    Args:
        file: A path or an fsspec URI.
        member: Its name.
        most: Bytes read, at most.

    Raises:
        KeyError: There is no such member.
        OSError, tarfile.TarError: The tar cannot be read, or is compressed.
    """
    refuse_compressed(file)
    system, path = system_of(file)
    hashes, offsets = _index(file, system.ukey(path))
    wanted = xxhash.xxh3_64_intdigest(_bytes(member))
    at = int(np.searchsorted(hashes, np.uint64(wanted), "right")) - 1
    if at < 0 or int(hashes[at]) != wanted:
        raise KeyError(f"no member {member}")
    with system.open(path, "rb", block_size=2**20) as stream:
        stream.seek(int(offsets[at]))
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            found = tar.next()
            packed = tar.extractfile(found) if found and found.name == member else None
            if found is None or packed is None:
                raise KeyError(f"no member {member}")
            # Asked for more than there is, it would set memory aside for all of it.
            return packed.read(min(found.size, most))


@functools.lru_cache(INDEXED_TARS)
def _index(file: str, version: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a tar's members lie: the sorted hashes of their names, and the offsets of their headers, both uint64."""
    hashes, offsets = array("Q"), array("Q")
    with open_file(file) as stream, _opened(stream) as tar:
        for member in _members(tar):
            hashes.append(xxhash.xxh3_64_intdigest(_bytes(member.name)))
            offsets.append(member.offset)
    unsorted = np.array(hashes, np.uint64)
    order = np.argsort(unsorted, kind="stable")
    return unsorted[order], np.array(offsets, np.uint64)[order]


def _opened(stream: IO[bytes]) -> tarfile.TarFile:
    """Return the tar of a file; raises tarfile.ReadError where the file only points to one."""
    found = pointer(stream.read(HEAD))
    if found:
        raise tarfile.ReadError(found)
    stream.seek(0)
    return tarfile.open(fileobj=stream, mode="r:")


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogatepass")
