"""Writes WebDataset shards, by webdataset's TarWriter, that are the same bytes for the same samples, and reads them back.

`read_tar` is our own: webdataset's reader takes a truncated tar for a whole one, decompresses tars, and reads sparse members.
"""

import functools
import importlib
import importlib.util
import io
import itertools
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from promptmill.configs.errors import shown
from promptmill.shards.bundles import maps_in

KEY = re.compile(r"[A-Za-z0-9_-]+")
BLOCK = 512  # bytes: of a header, and what contents are filled up to
BARE_WEBDATASET = "_webdataset_without_torch"
LONGEST_NAME = 100  # bytes of a member's name that a header of one block holds


@dataclass(frozen=True)
class Sample:
    """Holds one sample: its key (letters, digits, - and _) and its files by ending, without the dot."""

    key: str
    files: Mapping[str, bytes]


class TarError(ValueError):
    """Reports samples that cannot make a shard, or a shard that is not one; the message says which."""


def write_tar(samples: Iterable[Sample]) -> bytes:
    """Write the samples as a POSIX (ustar) tar, sorted by key, the files of each by ending; nothing of this machine is in it.

    Raises:
        TarError: A key occurs twice or would be misunderstood by a reader, samples differ in their endings other than those of
            control maps, or there are none.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    if not ordered:
        raise TarError("no samples: an empty tar breaks its readers, so none is written")
    for sample, following in itertools.pairwise(ordered):
        if sample.key == following.key:
            raise TarError(f"{sample.key}: occurs twice")
    endings = _shared(ordered[0])
    whole = io.BytesIO()
    with _tar_writer()(whole, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
        for sample in ordered:
            if not KEY.fullmatch(sample.key):
                raise TarError(f"{sample.key}: a key is letters, digits, - and _ only: readers split it at the first dot")
            if _shared(sample) != endings:
                raise TarError(f"{sample.key}: has {', '.join(sorted(sample.files))} where the others have {', '.join(endings)}")
            if len(sample.key) + 1 + max(map(len, sample.files)) > LONGEST_NAME:
                raise TarError(f"{sample.key}: is longer than the {LONGEST_NAME} bytes that a member's name may have")
            tar.write({"__key__": sample.key, **sample.files})
    return whole.getvalue()


def _shared(sample: Sample) -> list[str]:
    """Return the endings that all samples of a shard have; of control maps a row has as many as it has controls."""
    return sorted(sample.files.keys() - set(maps_in(sample.files)))


@functools.cache
def _tar_writer() -> Any:
    """Import webdataset's TarWriter without the `__init__` of webdataset, which imports torch: 1.4 s and 470 MB of each process."""
    found = importlib.util.find_spec("webdataset")
    assert found is not None and found.submodule_search_locations is not None
    # The same files under another name: whoever imports webdataset gets the whole of it.
    bare = ModuleType(BARE_WEBDATASET)
    bare.__path__ = list(found.submodule_search_locations)
    sys.modules[BARE_WEBDATASET] = bare
    return importlib.import_module(f"{BARE_WEBDATASET}.writer").TarWriter


def read_tar(content: bytes) -> Iterator[Sample]:
    """Yield the samples of a shard, in its order.

    Raises:
        TarError: The tar is truncated or altered beyond reading, or has a sample whose files do not stand together.
    """
    key, files, seen, end = "", dict[str, bytes](), set[str](), 0
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                # A link would be followed inside the tar, in circles too, and a sparse file may be of any size.
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                    raise TarError(f"{shown(member.name)}: is no file")
                packed = tar.extractfile(member) if 0 <= member.size <= len(content) else None
                if packed is None:
                    raise TarError(f"{shown(member.name)}: says that it is of {member.size:,} bytes")
                name, _, ending = member.name.partition(".")
                if name != key:
                    if files:
                        yield Sample(key, files)
                    if name in seen:
                        raise TarError(f"{shown(name)}: its files do not stand together")
                    key, files = name, {}
                    seen.add(name)
                if ending in files:
                    raise TarError(f"{shown(member.name)}: occurs twice")
                files[ending] = packed.read()
                if len(files[ending]) != member.size:
                    raise TarError(f"{shown(member.name)}: truncated")
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
    except TarError:
        raise
    except (tarfile.TarError, LookupError, ValueError, OverflowError, EOFError, OSError) as error:
        raise TarError(f"cannot be read: {shown(str(error))}") from None
    if files:
        yield Sample(key, files)
    # tarfile takes a broken header for the end; a whole tar closes with two empty blocks or more, and nothing else.
    if len(content) % BLOCK or len(content) - end < 2 * BLOCK or content[end:].strip(b"\0"):
        raise TarError(f"truncated or altered: what follows byte {end} is not the end of a tar")
