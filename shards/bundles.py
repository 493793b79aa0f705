"""Packs an image file and the files that lie beside it (control maps, the image before its stages) into one cell of a part.

Slices, passes and joins move the cell as it is, so that an image and these files stay together. A dataset without them has the
image file alone in the cell.
"""

import hashlib
import io
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from promptmill.configs.columns import CAPTION, CONTROL_MAPS, STAGE0
from promptmill.shards.image_files import PNG_LEVEL
from promptmill.shards.tables import declared_in

STAGE0_NAME = "stage0.png"  # the ending of the name of an image as it was before the stages
CAPTION_NAME = "caption.txt"  # the ending of the name of a caption, which is no part of a cell: the row has it
MAP_NAME = re.compile(r"control\.([0-9]{1,2})\.png")  # the ending of a map's name in the tar
LENGTHS = struct.Struct(">Q")


class BundleError(ValueError):
    """Reports a cell that holds no image and maps."""


def encode_map(pixels: np.ndarray) -> bytes:
    """Encode a control map as PNG; the same bytes for the same pixels and version of the codec.

    Args:
        pixels: The map, (H, W, 3) uint8, or int16 with values below 0 for pixels that are taken away, which become black.
    """
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()


def entry(content: bytes) -> dict[str, str | int]:
    """Return the entry of a map's file in the column `control_maps`."""
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def pack(image: bytes, maps: Sequence[bytes]) -> bytes:
    """Return an image file and its maps as one cell."""
    files = (image, *maps)
    return b"".join((bytes([len(files)]), *(LENGTHS.pack(len(file)) for file in files), *files))


def unpack(cell: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the image file and the maps of a cell.

    Raises:
        BundleError: The cell's lengths are not those of its files.
    """
    number = cell[0] if cell else 0
    at = 1 + number * LENGTHS.size
    if not number or len(cell) < at:
        raise BundleError("holds no image and maps")
    files = []
    for place in range(number):
        (length,) = LENGTHS.unpack_from(cell, 1 + place * LENGTHS.size)
        files.append(cell[at : at + length])
        at += length
    if at != len(cell):
        raise BundleError("its lengths are not those of its files")
    return files[0], tuple(files[1:])


def unpacked(cell: bytes, columns: Sequence[str]) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the image file of a part's cell and the files beside it, by the columns of its dataset."""
    return unpack(cell) if is_bundled(columns) else (cell, ())


def is_bundled(columns: Collection[str]) -> bool:
    """Return whether the cells of a dataset with these columns hold files beside the image."""
    return CONTROL_MAPS in columns or STAGE0 in columns


def beside(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the files beside a row's image, in the order of its cell: by the ending of their names, SHA-256 and size in bytes."""
    maps = row.get(CONTROL_MAPS) or ()
    first = {STAGE0_NAME: said} if (said := row.get(STAGE0)) else {}
    return {**dict(zip(map_names(len(maps)), (one or {} for one in maps), strict=True)), **first}


def captions(table: pa.Table) -> list[dict[str, bytes]]:
    """Return for each row the file of its image's caption, by the ending of the file's name; none in a dataset without captions."""
    declared = declared_in(table.schema).get(CAPTION)
    if declared is None or declared.name != CAPTION:  # of another role, as a stranger's file may say
        return [{}] * len(table)
    return [{CAPTION_NAME: (caption or "").encode()} for caption in table[CAPTION].to_pylist()]


def beside_in(files: Mapping[str, bytes]) -> list[str]:
    """Return the endings among a sample's files that are those of files beside the image, in the order of its cell."""
    return [*maps_in(files), *([STAGE0_NAME] if STAGE0_NAME in files else [])]


def map_names(number: int) -> list[str]:
    """Return the endings of the names of so many maps in the tar."""
    return [f"control.{place}.png" for place in range(number)]


def maps_in(files: Mapping[str, bytes]) -> list[str]:
    """Return the endings among a sample's files that are those of maps, in the order of their controls."""
    found = {int(named[1]): ending for ending in files if (named := MAP_NAME.fullmatch(ending))}
    return [found[place] for place in sorted(found)]
