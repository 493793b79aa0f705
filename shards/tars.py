"""Writes WebDataset shards that are the same bytes for the same samples, and reads them back."""

import io
import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from promptmill.configs.errors import shown

KEY = re.compile(r"[A-Za-z0-9_-]+")
BLOCK = 512  # bytes: of a header, and what contents are filled up to


@dataclass(frozen=True)
class Sample:
    """One sample: its key (letters, digits, - and _) and its files by ending, without the dot."""

    key: str
    files: Mapping[str, bytes]


class TarError(ValueError):
    """Samples that cannot make a shard, or a shard that is not one; the message says which."""


def write_tar(samples: Iterable[Sample]) -> bytes:
    """A POSIX (ustar) tar of the samples, sorted by key, the files of each by ending; no times, owners or modes of this machine.

    Raises:
        TarError: A key that occurs twice or that a reader would misunderstand, samples that differ in their endings, or none.
    """
    ordered = sorted(samples, key=lambda sample: sample.key)
    if not ordered:
        raise TarError("no samples: an empty tar breaks its readers, so none is written")
    for sample, following in itertools.pairwise(ordered):
        if sample.key == following.key:
            raise TarError(f"{sample.key}: occurs twice")
    endings = sorted(ordered[0].files)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in ordered:
            if not KEY.fullmatch(sample.key):
                raise TarError(f"{sample.key}: a key is letters, digits, - and _ only: readers split it at the first dot")
            if sorted(sample.files) != endings:
                raise TarError(f"{sample.key}: has {', '.join(sorted(sample.files))} where the others have {', '.join(endings)}")
            for ending in endings:
                content = sample.files[ending]
                member = tarfile.TarInfo(f"{sample.key}.{ending}")
                member.size, member.mode, member.mtime = len(content), 0o644, 0
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def read_tar(content: bytes) -> Iterator[Sample]:
    """The samples of a shard, in its order.

    Raises:
        TarError: Truncated or altered beyond reading, or a sample whose files do not stand together.
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
