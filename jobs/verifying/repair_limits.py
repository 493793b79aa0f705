"""Separates the damage that can be mended here, to the same bytes, from the rest, before anything is deleted."""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptmill.configs.errors import shown
from promptmill.configs.schema import Runtime
from promptmill.jobs.planning.accepted_changes import changes
from promptmill.jobs.planning.plan import Plan, PlanError, read_hardware
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.running.repair_note import remembered
from promptmill.jobs.verifying.image_places import NOTHING, Given, places, remedy, seen_images
from promptmill.jobs.verifying.plan_checks import Planned
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.repair import whole_plan
from promptmill.jobs.verifying.verify import read_all_records, read_index
from promptmill.manifests.checking import AsMask, Look, Looks, check_images
from promptmill.manifests.drawings import is_inline
from promptmill.manifests.roots import ImageError, find
from promptmill.pipelines.models.identity import config_identity, library_versions
from promptmill.pipelines.work.units import sample_key
from promptmill.shards.commits import CommitRecord, parse_shard_name
from promptmill.shards.index import INDEX
from promptmill.shards.storage import is_local, join, names


@dataclass(frozen=True)
class Repairable:
    """Holds the damage that a repair can mend, and the plan that it mends by.

    Attributes:
        plan: The output's plan, as this repair runs it.
        problems: The problems that can be repaired.
        again: Numbers of the shards that have to be rendered.
        left: By the number of each damaged shard that stays as it is, why, as a line.
    """

    plan: Plan
    problems: Sequence[Problem]
    again: frozenset[int] = frozenset()
    left: Mapping[int, str] = field(default_factory=dict)


def repairable(output: str, problems: Sequence[Problem], given: Given = NOTHING, address: str | None = None) -> Repairable:
    """Return the damage that can be repaired here, to the same bytes, found out before anything is deleted.

    Shards that were committed before changes that were accepted cannot be.

    Args:
        output: The dataset's URI.
        problems: All problems that `verify` found.
        given: Where the manifest's images lie now.
        address: The address of the Ray cluster to render on; None is this machine, wherever the plan ran.

    Raises:
        PlanError: Model, libraries, images or hardware are others than made it, all damaged shards are of an earlier plan, or as
            `clear`.
        ModelError: The model is not there.
    """
    plan = _run_here(whole_plan(output, problems), given, address)
    records = read_all_records(output, Planned(plan), listed := read_index(output))
    committed = {record.shard for record in records.known}
    damaged = {problem.shard for problem in problems if problem.shard is not None}
    begun = set(remembered(output).shards)
    left = _left(plan, damaged, begun, [*listed.values(), *records.known]) if plan.accepted else {}
    again = frozenset(damaged - set(left) | begun - committed)
    if left and not again:
        raise PlanError([*left.values()])
    if not again:
        return Repairable(plan, [*problems])
    if left:
        _check_records(output, left, [record for record in records.known if record.fingerprint in plans_of(plan)])
        problems = [problem for problem in problems if (problem.shard if not problem.surplus else _shard(problem.file)) not in left]
    now = {
        "models": config_identity(plan.config),
        "versions": library_versions(plan.config.model, plan.config.all_stages),
    }
    _same(output, [*map(str, changes(plan, {**plan.inputs, **now}))])
    folders = _image_folders(output, plan, again, [*listed.values(), *records.last])
    if address is None and not plan.config.runtime.mixed_hardware:
        # Loading torch takes seconds, which other obstacles need not wait for.
        from promptmill.pipelines.rendering.hardware import hardware_kind

        then, here = read_hardware(output), hardware_kind(plan.config.model.threads)
        _same(output, [f"{name}: was {then.get(name)}, is {here.get(name)}" for name in here if then.get(name) != here.get(name)])
    # All that every node has to have: nobody reads the manifest again.
    config = plan.config.model_copy(update={"manifest": (), "runtime": _with(plan.config.runtime, image_roots=folders)})
    # Every image that these shards name is known by now, and lies where it was found.
    roots = replace(plan.roots, untrusted=tuple(folder for folder in plan.roots.untrusted if not is_local(folder)))
    return Repairable(replace(plan, config=config, roots=roots), problems, again, left)


def _run_here(plan: Plan, given: Given, address: str | None) -> Plan:
    """Return the plan as a repair runs it.

    Where and how large it ran before is that place's; here the pools take what there is.
    """
    place = {"workers": "ray"} if address else {"generators": "auto", "scorers": "auto", "metrics_port": None}
    runtime = _with(plan.config.runtime, address=address, **place)
    return replace(plan, config=plan.config.model_copy(update={"runtime": runtime}), roots=places(plan.roots, given))


def _with(runtime: Runtime, **values: Any) -> Runtime:
    return runtime.model_copy(update=values)


def _same(output: str, different: Sequence[str]) -> None:
    if different:
        raise PlanError([f"{output}: cannot be made again here to the same bytes, since this has changed:", *different])


def plans_of(plan: Plan) -> frozenset[str]:
    """Return the fingerprints that shards beside a plan may have."""
    return frozenset({plan.fingerprint, *plan.accepted})


def _left(plan: Plan, damaged: Iterable[int], begun: Collection[int], records: Iterable[CommitRecord]) -> dict[int, str]:
    """Return the damaged shards that are not of this plan, or of which nothing tells whose they are, and why each is left."""
    said: dict[int, set[str]] = {}
    for record in records:
        said.setdefault(record.shard, set()).update({record.fingerprint} & plans_of(plan))
    left = {}
    for shard in sorted(damaged):
        # One whose repair was begun was of this plan then, or is by now.
        plans = said.get(shard) or ({plan.fingerprint} if shard in begun else set())
        if plans == {plan.fingerprint}:
            continue
        left[shard] = f"shard {shard:06d} " + (
            "was committed before changes that were accepted; this plan cannot make it again to the same bytes"
            f" (take commits/{shard:06d}.* away, and `promptmill run` renders the shard anew by this plan)"
            if plans and plan.fingerprint not in plans
            else f"may be of this plan or of one before changes that were accepted: its record and {INDEX} do not tell; "
            "bring its record in commits/ back from a copy"
        )
    return left


def _check_records(output: str, left: Mapping[int, str], known: Iterable[CommitRecord]) -> None:
    """Raise PlanError where a shard that is left has a record that no run would begin with."""
    good = {(record.shard, record.generation) for record in known}
    for name in names(join(output, "commits")):
        parsed = parse_shard_name(name.removesuffix(".json"))
        if parsed is not None and parsed[0] in left and parsed not in good:
            way = f"bring commits/{name} back from a copy, or take it away; before that no other shard is repaired"
            raise PlanError([*left.values(), f"{output}/commits/{name}: broken; {way}"])


def _look_known(
    look_at: Callable[..., Look], file: int, known: Collection[str], path: str, mask: AsMask | None = None, face: bool = False
) -> Look:
    """Look at an image of a request, with the word whether the caller knows its SHA-256."""
    return look_at(path, file, known=path in known, mask=mask, face=face)


def _image_folders(output: str, plan: Plan, shards: Iterable[int], records: Sequence[CommitRecord]) -> tuple[str, ...]:
    """Find every image that the requests of these shards name, there and as it was; return the local folders of these images.

    What an image was is told by the plan, or, where the plan did not look, by the shard's metadata, where that is whole; requests
    that failed of their images by that have none to lose.

    Raises:
        PlanError: An image is not there, or is another.
    """
    folders = set[str]()
    look_at = Looks(plan.roots, 100_000)
    for shard in sorted(shards):
        requests = [placed for placed in read_shard(output, shard, plan).requests if next(placed.request.images(), None)]
        seen = seen_images(output, [record for record in records if record.shard == shard]) if requests else {}
        for placed in requests:
            then = seen.get(sample_key(shard, placed.row, None), {})
            if then is None:
                continue
            was_before = {column: placed.images.get(column) or then.get(column) for column, _ in placed.request.images()}
            known = {path for column, path in placed.request.images() if was_before[column] is not None}
            look_known = functools.partial(_look_known, look_at, placed.file, known)
            seen_now = check_images(placed.request, look_known)
            found, wrong = seen_now.sha256, [*seen_now.problems]
            for column, path in placed.request.images():
                was = was_before[column]
                if column in found and was not in (None, found[column]):
                    wrong.append(f"{column}: {shown(path)}: is not what it was when the dataset was made")
                elif (
                    column in found
                    and not is_inline(path)
                    and is_local(place := find(path, plan.roots, placed.file, path in known)[0])
                ):
                    folders.add(str(Path(place).parent))
            if wrong:
                fault = seen_now.kinds.get(wrong[0], ImageError).fault
                where = f"{output}: shard {shard:06d}, row {placed.row}: {wrong[0]}"
                raise PlanError([f"{where}; nothing is repaired without it: {remedy(fault)}"])
    return tuple(sorted(folders))


def _shard(file: str) -> int | None:
    """Return the shard that a file is of, by its name; None for a file of no shard."""
    name = file.rpartition("/")[2].partition("-")[0]
    parsed = parse_shard_name(name) or parse_shard_name(name.rpartition(".")[0])
    return parsed[0] if parsed else None
