"""Writes and reads commit records: one small JSON a shard, written once all its files are whole.

Readers of a dataset trust the records and nothing else.
"""

import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Any

from promptmill.configs.columns import NewerFormatError, check_format
from promptmill.configs.errors import shown
from promptmill.configs.json_values import Whole, parse_json, read_json
from promptmill.shards.outcomes import COUNTS, RARE, Outcomes, as_sum, as_values
from promptmill.shards.storage import TooLargeError, get, join, names, put_if_absent

NAME = re.compile(r"([0-9]{6,9})(?:\.([0-9]{1,4}))?")
MOST_GENERATION = 9_999  # as NAME has it; a run removes what is left of all generations before the one that it commits
MOST_BYTES = 2**16  # of a record
HASH = re.compile(r"[0-9a-f]{64}")  # SHA-256, which fingerprints are, too
READERS = 16  # records under way at a time: on a remote storage each is a round trip


@dataclass(frozen=True)
class FileRecord:
    """Names one published file: its path from the output, its size in bytes and its SHA-256 in hexadecimal."""

    path: str
    size: Whole
    sha256: str

    @classmethod
    def of(cls, path: str, content: bytes) -> "FileRecord":
        return cls(path, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class CommitRecord(Outcomes):
    """Names the files of a shard, and counts the requests and candidates in it.

    Attributes:
        shard: The shard's number, from 0.
        generation: 0, or how often the shard's failed rows were tried again.
        files: The shard's tar (unless nothing was kept) and its Parquet file.
        fingerprint: The plan's fingerprint.
        format: The dataset's format; not in the record's file where it is 1.
    """

    shard: int
    generation: int
    files: tuple[FileRecord, ...]
    fingerprint: str
    format: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.failed_requests <= self.requests:
            raise CommitError(f"shard {self.shard:06d}: {self.failed_requests} of {self.requests} requests failed")

    @property
    def paths(self) -> dict[str, str]:
        """Return the only paths that files of this shard have, by their folder; a shard without a kept image has no tar."""
        name = shard_name(self.shard, self.generation)
        tar = {"data": f"data/{name}.tar"} if self.kept else {}
        return {**tar, "metadata": f"metadata/{name}.parquet"}

    def file(self, folder: str) -> FileRecord | None:
        """Return the record of the shard's file in `data` or `metadata`; None where the record names none of its only name."""
        return next((file for file in self.files if file.path == self.paths.get(folder)), None)

    def values(self) -> dict[str, Any]:
        """Return the record as JSON values, as its file has them."""
        return {name: value for name, value in as_values(self).items() if name != "format" or value != 1}

    def to_json(self) -> bytes:
        """Return the content of the record's file."""
        return (json.dumps(self.values(), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> "CommitRecord":
        """Read a record strictly from its file's content: its types, its numbers within 64 bits, none below zero, and their sums.

        Raises:
            CommitError: The content is no commit record, or one of a later format.
        """
        try:
            values = dict(vars(read_json(_said(), content)))
            candidates = values.pop("candidates")
            check_format(values["format"])
            record = cls(**values)
        except CommitError:
            raise
        except ValueError as error:
            if newer := _newer(content):
                raise CommitError(newer) from None
            raise CommitError(f"not a commit record: {shown(str(error), 300)}") from None
        if candidates != record.candidates:
            raise CommitError(f"shard {record.shard:06d}: {candidates} candidates are not {as_sum(record)}")
        return record


@functools.cache
def _said() -> type[Any]:
    """Return the type of a record's file: the record's fields, rare outcomes and the first format left out, and all candidates."""
    left_out = {**dict.fromkeys(RARE, 0), "format": 1}
    known = [(one.name, Whole if one.type is int else one.type) for one in fields(CommitRecord)]
    named = [(name, kind, field(default=left_out[name])) if name in left_out else (name, kind) for name, kind in known]
    return make_dataclass("Said", [*named, ("candidates", Whole)], kw_only=True)


def _newer(content: bytes) -> str | None:
    """Return the fault of a record of a later format, which may have fields that nobody knows here; None for any other record."""
    try:
        check_format(parse_json(content).get("format", 1))
    except NewerFormatError as error:
        return str(error)
    except (ValueError, AttributeError):
        pass
    return None


class CommitError(ValueError):
    """Reports a record that is broken, or that contradicts the one that is there."""


def shard_name(shard: int, generation: int = 0) -> str:
    """Return the name that a shard's files share: 000012, and 000012.1 once its failed rows were tried again."""
    return f"{shard:06d}" + (f".{generation}" if generation else "")


def parse_shard_name(name: str) -> tuple[int, int] | None:
    """Return shard and generation of such a name; None where the text is none."""
    parsed = NAME.fullmatch(name)
    if parsed is None:
        return None
    shard, generation = int(parsed[1]), int(parsed[2] or 0)
    return (shard, generation) if shard_name(shard, generation) == name else None


def commit(output: str, record: CommitRecord) -> None:
    """Publish a shard whose files are in place; repeated, the call changes nothing.

    Raises:
        CommitError: Another record is there under this name; the message says what they differ in.
    """
    uri = _uri(output, record)
    if not put_if_absent(uri, record.to_json()):
        _compare(output, uri, read_small(uri), record)


def check_unopposed(output: str, record: CommitRecord) -> None:
    """Raise CommitError where another record is there under this one's name, before its files are replaced."""
    uri = _uri(output, record)
    try:
        there = read_small(uri)
    except FileNotFoundError:
        return
    _compare(output, uri, there, record)


def record_uri(output: str, shard: int, generation: int = 0) -> str:
    """Return where a shard's record lies."""
    return join(output, "commits", f"{shard_name(shard, generation)}.json")


def _uri(output: str, record: CommitRecord) -> str:
    return record_uri(output, record.shard, record.generation)


def _compare(output: str, uri: str, there: bytes, record: CommitRecord) -> None:
    difference = _difference(there, record)
    if difference:
        raise CommitError(f"{uri}: {difference}; two runs with different plans are writing to {output}")


def read_records(output: str) -> list[CommitRecord]:
    """Return the record of each committed shard, of its last generation, in their order.

    Raises:
        CommitError: A record is broken, or is not of the shard that its name says.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda pair: read_record(output, *pair), _last_generations(output).items()))


def last_record(output: str, shard: int) -> CommitRecord:
    """Return the record of one shard, of its last generation.

    Raises:
        CommitError: As `read_records`.
        FileNotFoundError: The shard is not committed.
    """
    return read_record(output, shard, _last_generations(output).get(shard, 0))


def _last_generations(output: str) -> dict[int, int]:
    found = (parse_shard_name(name.removesuffix(".json")) for name in names(join(output, "commits")) if name.endswith(".json"))
    return dict(sorted(pair for pair in found if pair is not None))


def check_plan(output: str, records: Iterable[CommitRecord], fingerprint: str, accepted: Collection[str] = ()) -> None:
    """Raise CommitError where a record is of a plan with another fingerprint, unless that change was accepted."""
    for record in records:
        if record.fingerprint != fingerprint and record.fingerprint not in accepted:
            plans = f"{record.fingerprint[:16]}, this one is {fingerprint[:16]}"
            raise CommitError(f"{_uri(output, record)}: is of another plan, {plans}; give another output")


def read_record(output: str, shard: int, generation: int = 0) -> CommitRecord:
    """Return the record of one shard.

    Raises:
        CommitError: The record is broken, is not of the shard that its name says, or names other files than such a shard has.
        FileNotFoundError: The shard is not committed.
    """
    name = f"commits/{shard_name(shard, generation)}.json"
    try:
        record = CommitRecord.from_json(read_small(join(output, name)))
    except CommitError as error:
        raise CommitError(f"{name}: {error}") from None
    if (record.shard, record.generation) != (shard, generation):
        raise CommitError(f"{name}: is the record of {shard_name(record.shard, record.generation)}")
    if wrong := _unsafe(record):
        raise CommitError(f"{name}: {wrong}; `promptmill verify` says all that is wrong")
    return record


def read_small(uri: str) -> bytes:
    """Read the file of a record, whatever lies there.

    Raises:
        CommitError: The file is far too large for a record.
        FileNotFoundError: The file is not there.
    """
    try:
        return get(uri, MOST_BYTES)
    except TooLargeError as error:
        raise CommitError(f"not a commit record: {error.said}") from None


def _unsafe(record: CommitRecord) -> str | None:
    """Return the words for what in a record could lead its readers to files of no shard or another's; None where nothing could."""
    if sorted(file.path for file in record.files) != sorted(record.paths.values()):
        there, wanted = (", ".join(sorted(paths)) for paths in ((f.path for f in record.files), record.paths.values()))
        return f"names {shown(there, 200) or 'no file'}, where the shard has {wanted}"
    for file in record.files:
        if file.size < 0 or not HASH.fullmatch(file.sha256):
            return f"says that {file.path} is of {file.size:,} bytes with SHA-256 {shown(file.sha256)}, which no file is"
    if not HASH.fullmatch(record.fingerprint):
        return f"its fingerprint is {shown(record.fingerprint)!r}, not 64 hexadecimal digits"
    return None


def _difference(there: bytes, record: CommitRecord) -> str | None:
    try:
        theirs, ours = asdict(CommitRecord.from_json(there)), asdict(record)
    except CommitError as error:
        return str(error)
    # What a person can look up is said before any count.
    different = (name for name in sorted(ours, key=COUNTS.__contains__) if theirs[name] != ours[name])
    return next((f"is there with {name} {theirs[name]}, this run has {ours[name]}" for name in different), None)
