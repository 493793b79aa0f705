"""The plan: the frozen list of shards and units that a manifest and a config make, as files under OUT/plan/.

plan/plan.json                the fingerprint, what it is over, counts, the resolved config; written last, so that a plan is whole
plan/shards/000000.json.gz    one shard: its requests, its units, and the rows that make no request
plan/hardware.json            the kind of hardware that the first worker found
plan/earlier/FINGERPRINT.json a plan that was given up for changes that the user accepted; committed shards may be of it

The JSON files hold the hash of themselves. It is the only input that workers get.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from configs.schema import Config
from jobs.seals import SEAL, sealed
from manifests.carried import arrow_types
from manifests.images import Roots
from manifests.requests import from_json, to_json
from pipelines.rows import ranking_columns
from pipelines.units import Placed, Unit
from shards.storage import delete, get, join, names, put, put_if_absent
from shards.tables import schema

FORMAT = 3


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
        undrafted: What the evaluations were without drafts.
        growing: Requests whose candidates grow; their candidates, keep and evaluations are the most.
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
    undrafted: int = 0
    growing: int = 0


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
        accepted: By the fingerprint of each plan that was here before, what had changed since, a line each.
        licences: Of the models, by their places in the config, as far as their cards said when the plan was made.
        notes: What a person should be told of the manifest, a line each.
    """

    inputs: Mapping[str, Any]
    shards: int
    counts: Counts
    carried: Mapping[str, str]
    embedding: int | None
    config: Config
    roots: Roots = field(default_factory=lambda: Roots(()))
    tuned_batch: int | None = None
    accepted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.inputs)

    @property
    def growing(self) -> bool:
        """Whether candidates of any request grow."""
        return self.counts.growing > 0

    @property
    def form(self) -> pa.Schema:
        """The schema of the metadata."""
        ranking = self.config.ranking
        return schema(arrow_types(self.carried), self.embedding, bool(ranking.drafts), self.growing, ranking_columns(ranking))


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


def shard_hash(shard: ShardPlan) -> str:
    """The SHA-256, in hex, of what a shard is asked for."""
    return hashlib.sha256(shard.requests_json()).hexdigest()


def write_shard(output: str, shard: ShardPlan) -> str:
    """Write one shard's plan; returns its `shard_hash`."""
    content = shard.requests_json()
    whole = content[:-1] + b',"units":' + _dumps(shard.units) + b"}"
    put(_shard_uri(output, shard.shard), gzip.compress(whole, compresslevel=1, mtime=0))
    return hashlib.sha256(content).hexdigest()


def read_shard(output: str, shard: int) -> ShardPlan:
    """Read one shard's plan."""
    return ShardPlan.from_json(gzip.decompress(get(_shard_uri(output, shard))))


def write_plan(output: str, plan: Plan, earlier: bool = False) -> None:
    """Write the plan itself, its shards being there already; or, `earlier`, put it aside."""
    content = {
        "format": FORMAT,
        "fingerprint": plan.fingerprint,
        "inputs": plan.inputs,
        "shards": plan.shards,
        "counts": asdict(plan.counts),
        "carried": plan.carried,
        "embedding": plan.embedding,
        # Where it ran is no business of whoever has the dataset, and nothing of theirs is to connect there.
        "config": plan.config.model_dump(mode="json", exclude={"runtime": {"address"}}),
        "roots": asdict(plan.roots),
        "tuned_batch": plan.tuned_batch,
        "accepted": plan.accepted,
        "licences": plan.licences,
        "notes": plan.notes,
    }
    put(_plan_uri(output, plan.fingerprint if earlier else None), sealed(content))


def read_plan(output: str, earlier: str | None = None) -> Plan | None:
    """The plan of an output, or the earlier one with this fingerprint; None where there is none.

    Raises:
        PlanError: It is broken, or of another version of promptmill.
    """
    uri = _plan_uri(output, earlier)
    try:
        content = get(uri)
    except FileNotFoundError:
        return None
    try:
        values = json.loads(content)
        if values["format"] != FORMAT:
            raise PlanError([f"{uri}: format {values['format']}, this promptmill reads {FORMAT}"])
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
            values["accepted"],
            values.get("licences", {}),  # plans from before it was written down say nothing
            tuple(values.get("notes", ())),
        )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError([f"{uri}: not a plan: {' '.join(str(error).split())[:200]}"]) from None
    if plan.fingerprint != values["fingerprint"]:
        raise PlanError([f"{uri}: altered: its fingerprint is not that of what it says"])
    return plan


def put_hardware(output: str, kind: Mapping[str, str]) -> bool:
    """Write down the kind of hardware that makes a dataset's bits; False where one is written down already."""
    return put_if_absent(_hardware_uri(output), sealed(dict(sorted(kind.items()))))


def read_hardware(output: str) -> dict[str, str]:
    """The kind of hardware that is written down.

    Raises:
        PlanError: It cannot be read.
        FileNotFoundError: There is none.
    """
    try:
        values = json.loads(get(_hardware_uri(output)))
        wrong = [name for name, value in values.items() if not isinstance(value, str)]
        if wrong:
            raise ValueError(f"{wrong[0]} is no text")
        return {name: value for name, value in values.items() if name != SEAL}
    except (ValueError, AttributeError) as error:
        raise PlanError([f"{_hardware_uri(output)}: not a kind of hardware: {' '.join(str(error).split())[:200]}"]) from None


def drop_plan(output: str) -> None:
    """Remove the plan; its shards stay."""
    delete(_plan_uri(output))


def drop_shards(output: str, shards: int) -> None:
    """Remove the plans of shards that a larger manifest once had."""
    folder = join(output, "plan", "shards")
    for name in names(folder):
        if name.split(".")[0].isdigit() and int(name.split(".")[0]) >= shards:
            delete(join(folder, name))


def earlier_plans(output: str) -> list[str]:
    """The fingerprints of the plans that were put aside."""
    return [name.removesuffix(".json") for name in names(join(output, "plan", "earlier"))]


def _plan_uri(output: str, earlier: str | None = None) -> str:
    return join(output, "plan", "earlier", f"{earlier}.json") if earlier else join(output, "plan", "plan.json")


def _hardware_uri(output: str) -> str:
    return join(output, "plan", "hardware.json")


def _shard_uri(output: str, shard: int) -> str:
    return join(output, "plan", "shards", f"{shard:06d}.json.gz")
