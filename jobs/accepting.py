"""What changed since a plan was made, and going on with it all the same: the plan is put aside, its committed shards stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import quoted
from jobs.differences import differences
from jobs.plan import Plan, PlanError, ShardPlan, drop_plan, earlier_plans, read_plan, read_shard, write_plan
from pipelines.rows import ranking_columns
from shards.commits import CommitRecord, read_records
from shards.index import INDEX, SUCCESS
from shards.storage import delete, join, names


def changes(plan: Plan, inputs: Mapping[str, Any]) -> list[str]:
    """What differs between what a plan was made from and what is there now, a line each."""
    return [
        # A hash tells a person only that it is another.
        f"{name}: {was} ({plan.counts.rows:,} rows), {is_}" if name == "manifest.0" else f"{name}: {was}, {is_}"
        for name, was, is_ in differences(plan.inputs, inputs)
        if not name.startswith("requests")
    ]


@dataclass(frozen=True)
class Aside:
    """What plans that were put aside, or are to be, leave behind.

    Attributes:
        plans: By their fingerprints.
        accepted: By the same, what had changed since, a line each.
        committed: The shards that stay, by number.
    """

    output: str
    plans: Mapping[str, Plan]
    accepted: Mapping[str, Sequence[str]]
    committed: Mapping[int, CommitRecord]

    def shard(self, number: int, ids: Sequence[str]) -> ShardPlan:
        """A committed shard's plan.

        Args:
            number: Of the shard.
            ids: Of the rows that the manifest now gives it.

        Raises:
            PlanError: They are not those that were committed: rows would be lost, or rendered twice.
        """
        plan = read_shard(self.output, number)
        then = [id for _, id in sorted([(p.row, p.request.id) for p in plan.requests] + [(bad.row, bad.id) for bad in plan.bad])]
        if len(then) != len(ids):
            now = f"the manifest now gives it {len(ids):,}"
            raise PlanError([f"shard {number:06d} is committed with {len(then):,} rows, {now}; give another --out"])
        for row, (was, is_) in enumerate(zip(then, ids, strict=True)):
            if was != is_:
                where = f"shard {number:06d}, row {row}"
                raise PlanError([f"{where}: is committed as {quoted(was)}, the manifest now has {quoted(is_)}; give another --out"])
        return plan

    def check(self, made: Plan) -> None:
        """Raise PlanError where a new plan's shards cannot stand beside those that are committed."""
        shards = made.shards
        last = max(self.committed, default=-1)
        if last >= shards:
            raise PlanError([f"shard {last:06d} is committed, and the manifest now makes {shards:,} shards; give another --out"])
        for fingerprint in sorted({record.fingerprint for record in self.committed.values()}):
            if fingerprint not in self.plans:
                raise PlanError(
                    [f"{self.output}: its shards are of a plan that is not there, {fingerprint[:16]}; give another --out"]
                )
            plan = self.plans[fingerprint]
            for what, then, now in (
                ("shards.size", plan.config.shards.size, made.config.shards.size),
                ("carried columns", dict(plan.carried), dict(made.carried)),
                ("embeddings", plan.embedding, made.embedding),
                ("the ranking's columns", list(ranking_columns(plan.config.ranking)), list(ranking_columns(made.config.ranking))),
                ("drafts", bool(plan.config.ranking.drafts), bool(made.config.ranking.drafts)),
                ("growing candidates", plan.growing, made.growing),
            ):
                if then != now:
                    raise PlanError([f"{what}: {then} in the shards that are committed, {now} now; give another --out"])


def look_aside(output: str, there: Plan | None, inputs: Mapping[str, Any]) -> Aside:
    """What would be left of the plan that is there and of those put aside before it, were a plan made from these inputs."""
    read = {fingerprint: read_plan(output, fingerprint) for fingerprint in earlier_plans(output)}
    plans = {fingerprint: plan for fingerprint, plan in read.items() if plan is not None}
    if there is not None:
        plans[there.fingerprint] = there
    accepted = {fingerprint: changes(plan, inputs) for fingerprint, plan in sorted(plans.items())}
    committed = {record.shard: record for record in read_records(output)} if plans else {}
    return Aside(output, plans, accepted, committed)


def put_aside(output: str, there: Plan | None) -> None:
    """Put the plan that is there aside, and remove what says that it is finished and the parts made for it.

    May be cut off anywhere and done again.
    """
    if there is not None:
        write_plan(output, there, earlier=True)
    for name in (SUCCESS, INDEX):
        delete(join(output, name))
    drop_plan(output)
    for name in names(join(output, "parts")):
        delete(join(output, "parts", name))
