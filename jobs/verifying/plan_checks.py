"""Reads a plan again, as it lies beside a dataset, and names what of it is not as it was written."""

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from promptmill.jobs.planning.plan import (
    MOST_HARDWARE,
    MOST_PLAN,
    MOST_SHARD,
    Plan,
    PlanError,
    ShardPlan,
    in_line,
    read_hardware,
    read_plan,
    requests_hash,
    shard_hash,
    unpacked,
)
from promptmill.jobs.planning.sealed_json import is_whole
from promptmill.jobs.verifying.problems import Problem
from promptmill.shards.storage import get, join, names

MOST_MISSING = 100_000  # plans of shards that may be missing: each is named
ALTERED = "altered: the hash that it holds is not its own"
OTHERWISE = "altered: what it asks for is not what the fingerprint is over"
SYSTEMS = b"\x03\x13\xff"  # what gzip names Unix, macOS and none: whoever wrote the plan


@dataclass(frozen=True)
class Planned:
    """What a dataset should be, as far as its plan tells.

    Attributes:
        plan: None where there is none that can be trusted.
        shards: The rows and the candidates of each shard, by number; of those whose plan can be read.
        problems: What is wrong with the plan itself.
    """

    plan: Plan | None = None
    shards: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    @property
    def fingerprints(self) -> frozenset[str]:
        """Of the plan, and of those before it whose shards may stay."""
        return frozenset({self.plan.fingerprint, *self.plan.accepted}) if self.plan else frozenset()

    @property
    def form(self) -> pa.Schema | None:
        """The schema of the metadata."""
        return self.plan.form if self.plan else None


def check_plan(output: str, committed: bool) -> Planned:
    """Read a plan with all of its shards. A dataset may be copied without it, but not with half of it.

    Args:
        output: The dataset's URI.
        committed: Whether a shard is committed; then some worker wrote down its hardware.
    """
    there = {name: f"plan/shards/{name}" for name in names(join(output, "plan", "shards"))}
    plan, problems = None, []
    try:
        plan = read_plan(output)
        if plan is not None and not is_whole(get(join(output, "plan", "plan.json"), MOST_PLAN)):
            plan, problems = None, [Problem("plan/plan.json", ALTERED)]
    except PlanError as error:
        problems = [Problem("plan/plan.json", error.problems[0].removeprefix(join(output, "plan/plan.json: ")))]
    if plan is None and not problems:
        if not there and "hardware.json" not in names(join(output, "plan")):
            return Planned()
        problems = [Problem("plan/plan.json", "missing, while the rest of the plan is there")]

    if plan is not None and plan.shards > len(there) + MOST_MISSING:
        said = f"says {plan.shards:,} shards, and plan/shards has {len(there):,}"
        plan, problems = None, [Problem("plan/plan.json", said)]
    wanted = {f"{number:06d}.json.gz": number for number in range(plan.shards)} if plan else {}
    shards, hashes = dict[int, tuple[int, int]](), list[str]()
    for name in sorted({*wanted, *there}):
        if plan is not None and name not in wanted:
            problems.append(Problem(f"plan/shards/{name}", "the plan has no such shard", surplus=True))
            continue
        try:
            shard = _parse_shard(get(join(output, "plan", "shards", name), MOST_SHARD), name)
        except FileNotFoundError:
            problems.append(Problem(f"plan/shards/{name}", "missing"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(Problem(f"plan/shards/{name}", f"altered: {in_line(error)}"))
        else:
            hashes.append(shard_hash(shard))
            if plan is not None and plan.shard_hashes and hashes[-1] != plan.shard_hashes[shard.shard]:
                problems.append(Problem(f"plan/shards/{name}", OTHERWISE))
                continue
            shards[shard.shard] = (len(shard.requests) + len(shard.bad), shard.candidates)
    untold = plan is not None and not plan.shard_hashes and len(hashes) == plan.shards  # an earlier promptmill's: not which it is
    if plan is not None and untold and requests_hash(hashes) != plan.inputs.get("requests"):
        shards.clear()
        problems.append(Problem("plan/shards", OTHERWISE))
    problems += [*_check_hardware(output, committed), *(_check_earlier(output, plan) if plan else ())]
    return Planned(plan, shards if plan else {}, tuple(problems))


def _parse_shard(content: bytes, name: str) -> ShardPlan:
    """One shard's plan, of a file of this name. Raises ValueError and others where a byte of it is not as it was written."""
    head = gzip.compress(b"", compresslevel=1, mtime=0)[:9]  # the tenth names the system
    if content[:9] != head or content[9:10] not in {SYSTEMS[i : i + 1] for i in range(len(SYSTEMS))}:
        raise ValueError("it does not begin as gzip does")
    shard = ShardPlan.from_json(unpacked(content))
    if name != f"{shard.shard:06d}.json.gz":
        raise ValueError(f"is the plan of shard {shard.shard:06d}")
    if not shard.units_are_whole:
        raise ValueError("its units do not hold each of its requests once")
    return shard


def _check_hardware(output: str, committed: bool) -> Iterator[Problem]:
    try:
        read_hardware(output)
        if not is_whole(get(join(output, "plan", "hardware.json"), MOST_HARDWARE)):
            yield Problem("plan/hardware.json", ALTERED)
    except PlanError as error:
        yield Problem("plan/hardware.json", error.problems[0].removeprefix(join(output, "plan/hardware.json: ")))
    except FileNotFoundError:
        if committed:
            yield Problem("plan/hardware.json", "missing, while shards are committed")


def _check_earlier(output: str, plan: Plan) -> Iterator[Problem]:
    """The plans before this one."""
    for fingerprint in plan.accepted:
        file = f"plan/earlier/{fingerprint}.json"
        try:
            earlier = read_plan(output, fingerprint)
        except PlanError as error:
            yield Problem(file, error.problems[0].removeprefix(join(output, f"{file}: ")))
            continue
        if earlier is None:
            yield Problem(file, "missing, while the plan says that it was before it")
        elif earlier.fingerprint != fingerprint or not is_whole(get(join(output, file), MOST_PLAN)):
            yield Problem(file, ALTERED)
