"""Reads embeddings of faces, which rows name as .npy files, from wherever an image may lie."""

import hashlib
import io
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from promptmill.configs.errors import shown
from promptmill.manifests.images import content_of
from promptmill.manifests.roots import ImageError, Roots, in_line

MOST_BYTES = 2**20  # of a file; an embedding of 512 values in fp32 has 2 KiB
MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Embedding:
    """Holds the embedding of a face as read.

    Attributes:
        values: (width,) float32.
        sha256: SHA-256 of the file's bytes, in hex.
    """

    values: np.ndarray
    sha256: str


def load_embedding(path: str, roots: Roots, file: int = 0, known: bool = False) -> Embedding:
    """Read the embedding that a row names; arguments and errors are those of `images.load`."""
    content = content_of(path, roots, file, known)
    name = shown(path)
    if not content.startswith(MAGIC):
        raise ImageError(f"{name}: not a .npy file, as numpy.save writes an array")
    if len(content) > MOST_BYTES:
        raise ImageError(f"{name}: {len(content):,} bytes are more than the {MOST_BYTES:,} that an embedding may have")
    try:
        shape, dtype, begin = _header(content)
    except Exception as error:  # numpy raises nearly anything at broken files
        raise ImageError(f"{name}: cannot be read as a .npy file: {in_line(error)}") from None
    # The header is a stranger's: what it claims is compared with what is there before anything is allocated. Python refuses to
    # print numbers of thousands of digits.
    if any(abs(side) > sys.maxsize for side in shape):
        raise ImageError(f"{name}: claims more values than any file has")
    size = math.prod(shape)
    if dtype.kind != "f" or not 0 < size == max(shape, default=0):
        said = shown(f"{dtype} and shape {shape}")
        raise ImageError(f"{name}: holds an array of {said}, not one row of floating point numbers")
    if len(content) - begin != size * dtype.itemsize:
        raise ImageError(f"{name}: claims {size:,} values of {dtype.itemsize} bytes, and holds {len(content) - begin:,} bytes")
    values = np.frombuffer(content, dtype, offset=begin)
    with np.errstate(over="ignore", invalid="ignore"):
        values = values.reshape(-1).astype(np.float32)
    if not np.isfinite(values).all() or not values.any():
        raise ImageError(f"{name}: holds {'zeros alone' if np.isfinite(values).all() else 'values that are no numbers'}")
    return Embedding(values, hashlib.sha256(content).hexdigest())


def _header(content: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return the shape, the dtype and the length in bytes of the header of a .npy file."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"of version {version[0]}.{version[1]}, and 1.0 and 2.0 are read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype, stream.tell()


def is_embedding(file: Path) -> bool:
    """Return whether a local file is a .npy file, as far as its beginning tells."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
