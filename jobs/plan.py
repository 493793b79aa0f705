"""The plan: the frozen list of shards and units that a manifest and a config make, as files under OUT/plan/.

plan/plan.json                the fingerprint, what it is over, counts, the resolved config; written last, so that a plan is whole
plan/shards/000000.json.gz    one shard: its requests, its units, and the rows that make no request

It is the only input that workers get.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from configs.schema import Config
from manifests.images import Roots
from manifests.requests import from_json, to_json
from pipelines.units import Placed, Unit
from shards.storage import get, join, put

FORMAT = 2


@dataclass(frozen=True)
class Counts:
    """What a plan holds.

    Attributes:
        rows: Of the manifest; requests + bad.
        bad: Rows that make no request.
        candidates, keep: Images to render, and at most to keep.
        units, buckets: As cut, and how many kinds of them there are that cannot share a batch.
        evaluations: Of the denoiser, guidance counted twice; what rendering will cost, near enough.
        pixels: Of all candidates.
        modes: Requests by mode.
    """

    rows: int = 0
    bad: int = 0
    requests: int = 0
    candidates: int = 0
    keep: int = 0
    units: int = 0
    buckets: int = 0
    evaluations: int = 0
    pixels: int = 0
    modes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A row that makes no request, to be recorded as failed. `row` counts from 0 in the shard."""

    row: int
    id: str
    prompt: str | None
    message: str


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its requests in order, which of them (by their place in that order) make each unit, and its bad rows."""

    shard: int
    requests: tuple[Placed, ...]
    units: tuple[tuple[int, ...], ...]
    bad: tuple[BadRow, ...] = ()

    def cut(self) -> list[Unit]:
        return [Unit(self.shard, number, tuple(self.requests[i] for i in some)) for number, some in enumerate(self.units)]

    @property
    def candidates(self) -> int:
        return sum(placed.request.candidates for placed in self.requests)

    def requests_json(self) -> bytes:
        """What the shard is asked for: what the fingerprint is over. How it is cut into units decides no byte of the dataset."""
        requests = [{"row": p.row, "file": p.file, "request": to_json(p.request), "images": dict(p.images)} for p in self.requests]
        return _dumps({"shard": self.shard, "requests": requests, "bad": [asdict(row) for row in self.bad]})

    @classmethod
    def from_json(cls, content: bytes) -> "ShardPlan":
        values = json.loads(content)
        requests = (Placed(p["row"], from_json(p["request"]), p["images"], p["file"]) for p in values["requests"])
        units = tuple(tuple(some) for some in values["units"])
        return cls(values["shard"], tuple(requests), units, tuple(BadRow(**row) for row in values["bad"]))


@dataclass(frozen=True)
class Plan:
    """A plan but for its shards, which are read one by one.

    Attributes:
        inputs: What the fingerprint is over: manifest content, render config, model identity, library versions.
        shards: How many there are.
        carried: The manifest's own columns, with their types.
        embedding: The width of CLIP embeddings, or None where none are kept.
        config: Resolved.
        roots: Where images may lie.
        tuned_batch: The denoising batch where `plan --tune` found it, rather than the config.
    """

    inputs: Mapping[str, Any]
    shards: int
    counts: Counts
    carried: Mapping[str, str]
    embedding: int | None
    config: Config
    roots: Roots = field(default_factory=lambda: Roots(()))
    tuned_batch: int | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.inputs)


class PlanError(ValueError):
    """A plan that cannot be used or made; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """The SHA-256, in hex, of the inputs as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_shard(output: str, shard: ShardPlan) -> str:
    """Write one shard's plan; returns the SHA-256 of what it is asked for."""
    content = shard.requests_json()
    whole = content[:-1] + b',"units":' + _dumps(shard.units) + b"}"
    put(_shard_uri(output, shard.shard), gzip.compress(whole, compresslevel=1, mtime=0))
    return hashlib.sha256(content).hexdigest()


def read_shard(output: str, shard: int) -> ShardPlan:
    """Read one shard's plan."""
    return ShardPlan.from_json(gzip.decompress(get(_shard_uri(output, shard))))


def read_shards(output: str, plan: Plan) -> Iterator[ShardPlan]:
    """All of them, in order, one in memory at a time."""
    return (read_shard(output, number) for number in range(plan.shards))


def write_plan(output: str, plan: Plan) -> None:
    """Write the plan itself; its shards are there already."""
    content = {
        "format": FORMAT,
        "fingerprint": plan.fingerprint,
        "inputs": plan.inputs,
        "shards": plan.shards,
        "counts": asdict(plan.counts),
        "carried": plan.carried,
        "embedding": plan.embedding,
        "config": plan.config.model_dump(mode="json"),
        "roots": asdict(plan.roots),
        "tuned_batch": plan.tuned_batch,
    }
    put(_plan_uri(output), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_plan(output: str) -> Plan | None:
    """The plan of an output, or None where there is none.

    Raises:
        PlanError: It is broken, or of another version of promptmill.
    """
    try:
        content = get(_plan_uri(output))
    except FileNotFoundError:
        return None
    try:
        values = json.loads(content)
        if values["format"] != FORMAT:
            raise PlanError([f"{_plan_uri(output)}: format {values['format']}, this promptmill reads {FORMAT}"])
        roots: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values["roots"].items()}
        plan = Plan(
            values["inputs"],
            values["shards"],
            Counts(**values["counts"]),
            values["carried"],
            values["embedding"],
            Config.model_validate(values["config"]),
            Roots(**roots),
            values["tuned_batch"],
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError([f"{_plan_uri(output)}: not a plan: {' '.join(str(error).split())[:200]}"]) from None
    if plan.fingerprint != values["fingerprint"]:
        raise PlanError([f"{_plan_uri(output)}: altered: its fingerprint is not that of what it says"])
    return plan


def _plan_uri(output: str) -> str:
    return join(output, "plan", "plan.json")


def _shard_uri(output: str, shard: int) -> str:
    return join(output, "plan", "shards", f"{shard:06d}.json.gz")
