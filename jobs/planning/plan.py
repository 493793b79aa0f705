"""Holds the plan: the frozen list of shards and units that a manifest and a config make, as files under OUT/plan/.

    plan/plan.json                the fingerprint, its inputs, counts, the resolved config; written last, so that a plan is whole
    plan/shards/000000.json.gz    one shard: its requests, its units, and the rows that make no request
    plan/hardware.json            the kind of hardware that the first worker found
    plan/earlier/FINGERPRINT.json a plan that was put aside for changes that the user accepted; committed shards may be of it

The JSON files hold the hash of themselves, plan.json that of each shard's plan, too: a shard's plan that was altered is refused
before anything of the shard is rendered. The plan is the only input that workers get.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from promptmill.configs.columns import COLUMNS, NewerFormatError, check_format
from promptmill.configs.columns import FORMAT as DATASET_FORMAT
from promptmill.configs.errors import shown
from promptmill.configs.json_values import checked, parse_json, read_json
from promptmill.configs.parameters import MAX_CANDIDATES, MAX_LIST, MAX_SIDE, MAX_STEPS
from promptmill.configs.schema import Config
from promptmill.jobs.planning.counts import LATER, Counts, read_counts
from promptmill.jobs.planning.sealed_json import SEAL, sealed
from promptmill.manifests.carried import arrow_types
from promptmill.manifests.images import Roots
from promptmill.manifests.requests import Request, from_json, to_json
from promptmill.manifests.rules import problems_of_masks
from promptmill.pipelines.work.metadata_rows import declared_columns
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Placed, Unit
from promptmill.shards.commits import HASH
from promptmill.shards.storage import OddFileError, TooLargeError, delete, flush_files, get, join, names, put, put_if_absent
from promptmill.shards.tables import schema

FORMAT = 3
MOST_PLAN = 192 * 2**20  # bytes of plan.json: it may name as many files as a manifest has
MOST_HARDWARE = 2**16  # bytes of hardware.json
MOST_SHARDS = 10**9
MOST_ROWS = 100_000  # of a shard: a key has five digits for them
MOST_EMBEDDING = 2**16


@dataclass(frozen=True)
class BadRow:
    """Holds a row that makes no request, to be recorded as failed; `row` counts from 0 in the shard."""

    row: int
    id: str
    prompt: str | None
    message: str


@dataclass(frozen=True)
class ShardPlan:
    """Holds one shard: its requests in order, the units as indices into that order, and its bad rows."""

    shard: int
    requests: tuple[Placed, ...]
    units: tuple[tuple[int, ...], ...]
    bad: tuple[BadRow, ...] = ()

    def cut(self) -> list[Unit]:
        return [Unit(self.shard, number, tuple(self.requests[i] for i in some)) for number, some in enumerate(self.units)]

    @property
    def units_are_whole(self) -> bool:
        """Return whether the units hold each of the requests once."""
        return sorted(place for unit in self.units for place in unit) == list(range(len(self.requests)))

    @property
    def candidates(self) -> int:
        return sum(placed.request.candidates for placed in self.requests)

    def requests_json(self) -> bytes:
        """Return the shard's requests and bad rows as JSON, which the fingerprint is over; the cut into units decides no byte."""
        requests = [{"row": p.row, "file": p.file, "request": to_json(p.request), "images": dict(p.images)} for p in self.requests]
        return _dumps({"shard": self.shard, "requests": requests, "bad": [asdict(row) for row in self.bad]})

    @classmethod
    def from_json(cls, content: bytes) -> "ShardPlan":
        """Read one shard's plan.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: The content is no shard's plan, or asks for what no row may.
        """
        values = parse_json(content)
        requests = (Placed(p["row"], from_json(p["request"]), p["images"], p["file"]) for p in values["requests"])
        units = tuple(tuple(some) for some in values["units"])
        shard = checked(cls(values["shard"], tuple(requests), units, tuple(BadRow(**row) for row in values["bad"])))
        if not all(0 <= place < len(shard.requests) for unit in shard.units for place in unit):
            raise ValueError("a unit holds a request that is not there")
        if not all(0 <= row < MOST_ROWS for row in (*(p.row for p in shard.requests), *(bad.row for bad in shard.bad))):
            raise ValueError(f"a row's number is not below {MOST_ROWS:,}")
        for placed in shard.requests:
            _check_bounds(placed.request)
        return shard


@dataclass(frozen=True)
class Rerender:
    """Names the rows of a committed shard that are to be rendered again, since the manifest has edited them.

    Attributes:
        shard: The shard's number.
        generation: The committed generation; once a later one is committed, nothing is left to do.
        rows: Ranges (first, last) of the rows, counted from 0 in the shard.
    """

    shard: int
    generation: int
    rows: tuple[tuple[int, int], ...]

    @property
    def numbers(self) -> frozenset[int]:
        return frozenset(row for first, last in self.rows for row in range(first, last + 1))


@dataclass(frozen=True)
class Plan:
    """Holds a plan without its shards, which are read one by one.

    Attributes:
        inputs: The inputs of the fingerprint: manifest content, render config, model identity, library versions.
        shards: The number of shards.
        carried: The manifest's own columns, with their types.
        embedding: The width of CLIP embeddings, or None where none are kept.
        config: The resolved config.
        roots: Where images may lie.
        tuned_batch: The denoising batch where `plan --tune` found it, rather than the config.
        accepted: By the fingerprint of each earlier plan of this output, the changes since, a line each.
        licences: Licences of the models, by their places in the config, as far as their cards said when the plan was made.
        rerender: Rows of committed shards that are to be rendered again.
        shard_hashes: The `shard_hash` of each shard; none in a plan of an earlier promptmill, which `with_shard_hashes` mends.
        notes: Remarks on the manifest for a person, a line each.
        dataset_format: Which columns there are, and how records and Parquet files say so; a dataset keeps the format it began with.
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
    rerender: tuple[Rerender, ...] = ()
    shard_hashes: tuple[str, ...] = ()
    notes: Sequence[str] = ()
    dataset_format: int = DATASET_FORMAT

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.inputs)

    @property
    def growing(self) -> bool:
        """Return whether candidates of any request grow."""
        return self.counts.growing > 0

    @property
    def of_rows(self) -> tuple[str, ...]:
        """Return the declared columns that are there since a request has one."""
        return tuple(column.name for column in COLUMNS if column.if_rows_have and self.counts.columns.get(column.if_rows_have))

    def rerenders(self, shard: int, generation: int) -> frozenset[int]:
        """Return the rows of a committed shard, counted from 0, that a later generation than this has to render again."""
        found = (some.numbers for some in self.rerender if some.shard == shard and some.generation >= generation)
        return frozenset().union(*found)

    @property
    def form(self) -> pa.Schema:
        """Return the schema of the metadata."""
        ranking, carried = self.config.ranking, arrow_types(self.carried)
        declared = declared_columns(self.config, self.of_rows)
        return schema(carried, self.embedding, bool(ranking.drafts), self.growing, declared, self.dataset_format)

    def recipe(self, output: str) -> Recipe:
        """Return the constants that the workers of a run need."""
        versions = json.dumps(self.inputs["versions"], sort_keys=True)
        more = self.growing, self.roots, self.counts.annotators
        return Recipe(self.config, self.form, output, self.fingerprint, self.carried, versions, *more)


class PlanError(ValueError):
    """Reports a plan that cannot be used or made; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of the inputs as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def requests_hash(hashes: Sequence[str]) -> str:
    """Return the SHA-256, in hex, of the requests of all shards, by the `shard_hash` of each; an input of the fingerprint."""
    return fingerprint_of({"shards": list(hashes)})


def in_line(error: Exception) -> str:
    """Return the text of an error as one line of at most 200 characters."""
    said = error.said if isinstance(error, OddFileError) else str(error)
    return shown(" ".join(said.split()), 200)


def _check_bounds(request: Request) -> None:
    """Raise ValueError where a request asks for what no row of a manifest may ask for."""
    if not 1 <= request.keep <= request.candidates <= MAX_CANDIDATES or not 1 <= request.steps <= MAX_STEPS:
        raise ValueError(f"{request.candidates} candidates of {request.steps} steps, {request.keep} of them kept")
    if not (8 <= request.width <= MAX_SIDE and 8 <= request.height <= MAX_SIDE):
        raise ValueError(f"an image of {request.width} x {request.height} pixels")
    if wrong := problems_of_masks(request):
        raise ValueError(wrong[0])


def write_plan(output: str, plan: Plan, earlier: bool = False) -> None:
    """Write plan.json once its shards are written; with `earlier`, write it among the plans put aside."""
    content = {
        "format": FORMAT,
        "fingerprint": plan.fingerprint,
        "inputs": plan.inputs,
        "shards": plan.shards,
        # Of datasets that have none of these the plan has the bytes that it had before there were any.
        "counts": {name: value for name, value in asdict(plan.counts).items() if value or name not in LATER},
        "carried": plan.carried,
        "embedding": plan.embedding,
        # The cluster's address is private, and no reader of the dataset should connect there.
        "config": plan.config.model_dump(mode="json", exclude={"runtime": {"address"}}),
        "roots": {name: value for name, value in asdict(plan.roots).items() if name != "untrusted"},  # the reader decides
        "tuned_batch": plan.tuned_batch,
        "accepted": plan.accepted,
        "licences": plan.licences,
        "shard_hashes": plan.shard_hashes,
        "notes": plan.notes,
    }
    if plan.dataset_format != 1:
        content["dataset_format"] = plan.dataset_format
    if plan.rerender:
        content["rerender"] = [asdict(some) for some in plan.rerender]
    put(_plan_uri(output, plan.fingerprint if earlier else None), sealed(content))


def read_plan(output: str, earlier: str | None = None) -> Plan | None:
    """Read the plan of an output, or the earlier one with this fingerprint; return None where there is none.

    Raises:
        PlanError: The plan is broken, or of another version of promptmill.
    """
    if earlier is not None and not HASH.fullmatch(earlier):
        return None  # a record may name anything, and the fingerprint becomes a file's name
    uri = _plan_uri(output, earlier)
    try:
        content = get(uri, MOST_PLAN)
    except FileNotFoundError:
        return None
    except TooLargeError as error:
        raise PlanError([f"{uri}: not a plan: {error.said}"]) from None
    try:
        values = parse_json(content)
        if values["format"] != FORMAT:
            raise PlanError([f"{uri}: format {values['format']}, this promptmill reads {FORMAT}"])
        dataset_format = check_format(values.get("dataset_format", 1))
        roots: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values["roots"].items()}
        plan = Plan(
            values["inputs"],
            values["shards"],
            read_counts(values["counts"]),
            values["carried"],
            values["embedding"],
            Config.model_validate(values["config"]),
            Roots(**roots),
            values["tuned_batch"],
            values["accepted"],
            values.get("licences", {}),  # plans of earlier versions have no licences
            tuple(_rerender(**some) for some in values.get("rerender", ())),
            tuple(values.get("shard_hashes", ())),
            tuple(values.get("notes", ())),
            dataset_format,
        )
        _check(plan)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PlanError):
            raise
        if isinstance(error, NewerFormatError):
            raise PlanError([f"{uri}: {error}"]) from None
        raise PlanError([f"{uri}: not a plan: {in_line(error)}"]) from None
    if plan.fingerprint != values["fingerprint"]:
        raise PlanError([f"{uri}: altered: its fingerprint is not that of what it says"])
    hashes = plan.shard_hashes
    if hashes and (len(hashes) != plan.shards or requests_hash(hashes) != plan.inputs.get("requests")):
        raise PlanError([f"{uri}: altered: its fingerprint is not over the hashes of its shards"])
    return plan


def _rerender(shard: int, generation: int, rows: Sequence[Sequence[int]]) -> Rerender:
    ranges = tuple((first, last) for first, last in rows)
    if not all(0 <= first <= last < MOST_ROWS for first, last in ranges):
        raise ValueError(f"rows {ranges[:3]} to be rendered again")
    return checked(Rerender(shard, generation, ranges))


def _check(plan: Plan) -> None:
    """Raise ValueError or TypeError where a plan holds values of other types, or numbers that no plan has."""
    checked(plan)
    counts = asdict(plan.counts).values()
    numbers = [number for value in counts for number in (value.values() if isinstance(value, dict) else [value])]
    if min(plan.shards, *numbers) < 0 or plan.shards > MOST_SHARDS:
        raise ValueError(f"{plan.shards} shards, or a count below zero")
    if not all(name.isdecimal() and int(name) <= MAX_LIST for name in plan.counts.steered):
        raise ValueError("a number of controls that no row has")
    if plan.embedding is not None and not 0 < plan.embedding <= MOST_EMBEDDING:
        raise ValueError(f"embeddings of {plan.embedding} numbers")
    unnamed = [fingerprint for fingerprint in plan.accepted if not HASH.fullmatch(fingerprint)]
    if unnamed:
        raise ValueError(f"{shown(unnamed[0])} is no fingerprint")
    # The schema is made here once, so that columns of unknown types raise here.
    assert plan.form


def put_hardware(output: str, kind: Mapping[str, str]) -> bool:
    """Write down the kind of hardware that makes a dataset's bits; return False where a kind is written down already."""
    return put_if_absent(_hardware_uri(output), sealed(dict(sorted(kind.items()))))


def read_hardware(output: str) -> dict[str, str]:
    """Read the kind of hardware that is written down.

    Raises:
        PlanError: The file cannot be read.
        FileNotFoundError: There is no such file.
    """
    try:
        values = read_json(dict[str, str], get(_hardware_uri(output), MOST_HARDWARE))
        return {name: value for name, value in values.items() if name != SEAL}
    except ValueError as error:
        raise PlanError([f"{_hardware_uri(output)}: not a kind of hardware: {in_line(error)}"]) from None


def drop_plan(output: str) -> None:
    """Remove the plan; its shards stay. A power cut does not bring the plan back, when its shards may have been written over."""
    delete(_plan_uri(output))
    flush_files([join(output, "plan")])


def earlier_plans(output: str) -> list[str]:
    """Return the fingerprints of the plans that were put aside."""
    found = (name.removesuffix(".json") for name in names(join(output, "plan", "earlier")) if name.endswith(".json"))
    return [fingerprint for fingerprint in found if HASH.fullmatch(fingerprint)]


def _plan_uri(output: str, earlier: str | None = None) -> str:
    return join(output, "plan", "earlier", f"{earlier}.json") if earlier else join(output, "plan", "plan.json")


def _hardware_uri(output: str) -> str:
    return join(output, "plan", "hardware.json")
