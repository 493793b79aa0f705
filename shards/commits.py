"""Commit records: one small JSON a shard, written once all its files are whole. Readers trust these and nothing else."""

import hashlib
import json
from dataclasses import asdict, dataclass

from shards.storage import get, join, put_if_absent


@dataclass(frozen=True)
class FileRecord:
    """One published file: its path from the output, its size in bytes and its SHA-256 in hex."""

    path: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: str, content: bytes) -> "FileRecord":
        return cls(path, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class CommitRecord:
    """What a shard is made of.

    Attributes:
        shard: Its number.
        generation: 0, or how often its failed rows were tried again.
        files: Its tar (unless nothing was kept) and its Parquet.
        requests, candidates, kept, rejected, failed: Counts; candidates = kept + rejected + failed.
        fingerprint: Of the plan.
    """

    shard: int
    generation: int
    files: tuple[FileRecord, ...]
    requests: int
    candidates: int
    kept: int
    rejected: int
    failed: int
    fingerprint: str

    def __post_init__(self) -> None:
        if self.candidates != self.kept + self.rejected + self.failed:
            sum_ = f"{self.kept} kept + {self.rejected} rejected + {self.failed} failed"
            raise CommitError(f"shard {self.shard:06d}: {self.candidates} candidates are not {sum_}")

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> "CommitRecord":
        """Raises CommitError where the content is no commit record."""
        try:
            values = json.loads(content)
            values["files"] = tuple(FileRecord(**file) for file in values["files"])
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, CommitError):
                raise
            raise CommitError(f"not a commit record: {error}") from None


class CommitError(ValueError):
    """A record that is broken, or that contradicts the one that is there."""


def shard_name(shard: int, generation: int = 0) -> str:
    """The name that a shard's files share: 000012, and 000012.1 once its failed rows were tried again."""
    return f"{shard:06d}" + (f".{generation}" if generation else "")


def commit(output: str, record: CommitRecord) -> None:
    """Publish a shard whose files are in place. Doing it again changes nothing.

    Raises:
        CommitError: Another record is there under this name; both are named by what they differ in.
    """
    name = f"{shard_name(record.shard, record.generation)}.json"
    uri = join(output, "commits", name)
    if put_if_absent(uri, record.to_json()):
        return
    there = get(uri)
    difference = _difference(there, record)
    if difference:
        raise CommitError(f"{uri}: {difference}; two runs with different plans are writing to {output}")


def _difference(there: bytes, record: CommitRecord) -> str | None:
    try:
        theirs, ours = asdict(CommitRecord.from_json(there)), asdict(record)
    except CommitError as error:
        return str(error)
    different = (name for name in ours if theirs[name] != ours[name])
    return next((f"is there with {name} {theirs[name]}, this run has {ours[name]}" for name in different), None)
