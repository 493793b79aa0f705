"""Checks keys of candidates, which name files: keys have one form, and rows of somebody else's dataset are held to it."""

import re

import pyarrow as pa
import pyarrow.compute as pc

# As `pipelines.work.units` writes them: numbers of at least six, five and four digits, none with a needless zero in front.
SHARD = r"(?:[0-9]{6}|[1-9][0-9]{6,9})"
ROW = r"(?:[0-9]{5}|[1-9][0-9]{5,9})"
CANDIDATE = r"(?:[0-9]{4}|[1-9][0-9]{4,9})"
KEY = re.compile(f"({SHARD})-({ROW})(?:-({CANDIDATE}))?")
LIKE = "000012-00003-0001"


def parse(key: str) -> tuple[int, int, int | None] | None:
    """Return shard, row and candidate of a key, the candidate None for a request as a whole; None where the text is no key."""
    found = KEY.fullmatch(key)
    return (int(found[1]), int(found[2]), int(found[3]) if found[3] else None) if found else None


def check_keys(keys: pa.ChunkedArray, shard: int) -> None:
    """Raise where a row's key could name anything but a file of its own shard.

    Args:
        keys: The column `key` of a shard's metadata.
        shard: The shard's number.

    Raises:
        ValueError: A row has no key of this shard; the message says which row, counted from 0, and what is there.
    """
    if keys.type != pa.string():
        raise ValueError(f"its column key is {keys.type}, not string")
    good = pc.fill_null(pc.match_substring_regex(keys, f"^{shard:06d}-{ROW}(?:-{CANDIDATE})?$"), False)
    # A line end would be allowed in front of `$`.
    good = pc.and_(good, pc.invert(pc.fill_null(pc.match_substring(keys, "\n"), True)))
    wrong = pc.index(good, False).as_py()
    if wrong >= 0:
        raise ValueError(f"row {wrong}: {keys[wrong].as_py()!r:.120} is no key of shard {shard}, which is like {_like(shard)}")


def _like(shard: int) -> str:
    return f"{shard:06d}{LIKE[6:]}"
