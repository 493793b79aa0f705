"""What changed since a plan was made, and going on with it all the same: the plan is put aside, its committed shards stay."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.plan import Plan, PlanError, ShardPlan, drop_plan, earlier_plans, read_plan, read_shard, write_plan
from shards.commits import CommitRecord, read_records
from shards.index import INDEX, SUCCESS
from shards.storage import delete, join, names


def changes(plan: Plan, inputs: Mapping[str, Any]) -> list[str]:
    """What differs between what a plan was made from and what is there now, a line each."""
    then = {name: value for name, value in _flat(plan.inputs) if not name.startswith("requests")}
    now = dict(_flat(inputs))
    lines = []
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            lines.append(f"{name}: was {_shown(then, name)}, is {_shown(now, name)}")
    return lines


def _flat(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for name, value in values.items():
            yield from _flat(value, f"{path}.{name}" if path else str(name))
    elif isinstance(values, list | tuple) and values:
        for number, value in enumerate(values):
            yield from _flat(value, f"{path}.{number}")
    else:
        yield path, values


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name])[:60] if name in values else "not there"


@dataclass(frozen=True)
class Aside:
    """What plans that were put aside leave behind.

    Attributes:
        accepted: By the fingerprint of each, what had changed since, a line each.
        committed: The shards that stay, by number.
        last: The latest of them; None where there was none.
    """

    output: str
    accepted: Mapping[str, Sequence[str]]
    committed: Mapping[int, CommitRecord]
    last: Plan | None = None

    def shard(self, number: int, rows: int) -> ShardPlan:
        """A committed shard's plan, to which the manifest now gives so many rows.

        Raises:
            PlanError: They are not as many as were committed.
        """
        record = self.committed[number]
        if record.requests != rows:
            now = f"the manifest now gives it {rows:,}"
            raise PlanError([f"shard {number:06d} is committed with {record.requests:,} rows, {now}; give another --out"])
        return read_shard(self.output, number)

    def check(self, shards: int, size: int, carried: Mapping[str, str], embedding: int | None) -> None:
        """Raise PlanError where a new plan's shards cannot stand beside those that are committed."""
        if self.last is None or not self.committed:
            return
        if max(self.committed) >= shards:
            last = max(self.committed)
            raise PlanError([f"shard {last:06d} is committed, and the manifest now makes {shards:,} shards; give another --out"])
        for what, then, now in (
            ("shards.size", self.last.config.shards.size, size),
            ("carried columns", dict(self.last.carried), dict(carried)),
            ("embeddings", self.last.embedding, embedding),
        ):
            if then != now:
                raise PlanError([f"{what}: {then} in the shards that are committed, {now} now; give another --out"])


def put_aside(output: str, there: Plan | None, inputs: Mapping[str, Any]) -> Aside:
    """Put the plan that is there aside, with what was made for it and is not committed. May be cut off and done again."""
    earlier = {fingerprint: read_plan(output, fingerprint) for fingerprint in earlier_plans(output)}
    if there is not None:
        write_plan(output, there, earlier=True)
        earlier[there.fingerprint] = there
    plans = {fingerprint: plan for fingerprint, plan in earlier.items() if plan is not None}
    if not plans:
        return Aside(output, {}, {})
    # The one that the others led to.
    last = there or max(plans.values(), key=lambda plan: len(plan.accepted))
    committed = {record.shard: record for record in read_records(output)}
    for name in (SUCCESS, INDEX):
        delete(join(output, name))
    drop_plan(output)
    for name in names(join(output, "parts")):
        delete(join(output, "parts", name))
    return Aside(output, {**last.accepted, last.fingerprint: changes(last, inputs)}, committed, last)
