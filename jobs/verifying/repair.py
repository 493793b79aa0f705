"""Clears the files that `verify` found damaged out of a dataset's way, so that a run makes exactly these again, to the same bytes.

Nothing is published here. A shard is damaged as a whole: its record goes first, so that nobody trusts its files any more, then they
go. What they should have been is kept in stats/repair.json until the repair is over: whoever is cut off goes on with it.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict

from promptmill.jobs.planning.plan import Plan, PlanError, read_plan
from promptmill.jobs.running.repair_note import REPAIR_NOTE, Cleared, remembered, stem
from promptmill.jobs.verifying.plan_checks import Planned
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.verify import read_all_records, read_index
from promptmill.shards.commits import CommitRecord, parse_shard_name, read_records, shard_name
from promptmill.shards.index import INDEX, SUCCESS
from promptmill.shards.storage import delete, join, names, put


def clear(output: str, problems: Iterable[Problem], left: Collection[int] = ()) -> Cleared:
    """Delete the files that only have to go, and all files of each shard that has to be made again.

    The call may be cut off anywhere: no reader that trusts the records is ever led to more than was damaged before, and doing it
    again goes on. What is made of the records is left to `jobs.running.finishing`.

    Args:
        output: The dataset's URI.
        problems: The problems that `verify` found and that are to be repaired; nobody may have written there since.
        left: Numbers of damaged shards that stay as they are: what index.json tells of them stays, too.

    Returns:
        What has to be made again, that of a repair that was cut off included.

    Raises:
        PlanError: There is no plan to make anything again by, or it is not whole; nothing is deleted.
        StorageError: The output cannot be read or written.
    """
    problems = list(problems)
    plan = whole_plan(output, problems)
    records = read_all_records(output, Planned(plan), listed := read_index(output))
    if records.known and not {record.fingerprint for record in records.known} & {plan.fingerprint, *plan.accepted}:
        raise PlanError([f"{output}/plan: no commit record is of this plan; bring the plan back that the dataset was made by"])
    damaged = {problem.shard for problem in problems if problem.shard is not None}
    before = remembered(output)
    shards, hashes = dict(before.shards), dict(before.hashes)
    for shard in sorted(damaged):
        # What a repair that was cut off wrote down before it deleted anything is better known than what it left.
        if shard not in before.shards:
            said = [record for record in (listed.get(shard), *records.last) if record is not None and record.shard == shard]
            shards[shard] = _generation(output, shard, said)
            hashes |= _hashes(shards[shard], said)
    cleared = Cleared(dict(sorted(shards.items())), hashes)
    if damaged:
        put(join(output, REPAIR_NOTE), (json.dumps(asdict(cleared), indent=1) + "\n").encode())
        delete(join(output, SUCCESS))
        if not left:
            delete(join(output, INDEX))
    for shard in sorted(damaged):
        _clear_shard(output, shard)
    for problem in problems:
        if problem.surplus:
            delete(join(output, problem.file))
    return cleared


def differing(output: str, cleared: Cleared) -> list[str]:
    """Return, for the files made again whose bytes are not what was said of them before, a line each."""
    records = (record for record in read_records(output) if record.shard in cleared.shards)
    there = {file.path: file.sha256 for record in records for file in record.files}
    lines = []
    for path, said in sorted(cleared.hashes.items()):
        if path not in there:
            lines.append(f"{path}: was there before, and is not made again")
        elif there[path] not in said:
            lines.append(f"{path}: has other bytes than before; its SHA-256 is {there[path]}, its record said {' or '.join(said)}")
    known = {stem(path) for path in cleared.hashes}
    lines += [f"{path}: was not there before" for path in sorted(there) if path not in cleared.hashes and stem(path) in known]
    return lines


def whole_plan(output: str, problems: Sequence[Problem]) -> Plan:
    """Return the plan, which has to be whole.

    Raises:
        PlanError: The plan is not whole, or there is none.
    """
    broken = [problem for problem in problems if problem.file.startswith("plan/") and not problem.surplus]
    if broken:
        raise PlanError([f"{output}/{broken[0]}; without a whole plan nothing is repaired: bring plan/ back from a copy"])
    plan = read_plan(output)
    if plan is None:
        raise PlanError([f"{output}: has no plan/ to repair it by; bring it back from a copy"])
    return plan


def _generation(output: str, shard: int, said: Sequence[CommitRecord]) -> int:
    """Return the generation that a damaged shard was last committed as.

    Its records and the index tell, else the generation that has the most files, else it is 0.
    """
    if said:
        return max(record.generation for record in said)
    lying = Counter(generation for _, generation in _lying(output, shard))
    return max(lying, key=lambda generation: (lying[generation], generation), default=0)


def _hashes(generation: int, said: Sequence[CommitRecord]) -> dict[str, list[str]]:
    """Return, by path, the SHA-256 said of a damaged shard's files; the index, which comes first, knows best what files exist."""
    said = [record for record in said if record.generation == generation]
    found: dict[str, list[str]] = {}
    for record in said:
        name = shard_name(record.shard, generation)
        for file in record.files:
            if file.path in (f"data/{name}.tar", f"metadata/{name}.parquet") and (record is said[0] or file.path in found):
                found[file.path] = list(dict.fromkeys([*found.get(file.path, []), file.sha256]))
    return found


def _lying(output: str, shard: int) -> list[tuple[str, int]]:
    """Return the files under a shard's name with their generations: records first, earlier generations before later ones."""
    found = []
    for order, (folder, ending) in enumerate((("commits", ".json"), ("data", ".tar"), ("metadata", ".parquet"))):
        for name in names(join(output, folder)):
            parsed = parse_shard_name(name.removesuffix(ending)) if name.endswith(ending) else None
            if parsed is not None and parsed[0] == shard:
                found.append((order > 0, parsed[1], f"{folder}/{name}"))
    return [(path, generation) for _, generation, path in sorted(found)]


def _clear_shard(output: str, shard: int) -> None:
    """Remove a shard: its records, the last generation's last, lest an earlier one be trusted instead; its files; its parts."""
    for path, _ in _lying(output, shard):
        delete(join(output, path))
    for name in names(join(output, "parts")):
        if name.startswith(f"{shard:06d}-"):
            delete(join(output, "parts", name))
