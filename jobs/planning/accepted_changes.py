"""Finds the changes since a plan was made, and lets a run go on with them: the plan is put aside, its committed shards stay."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from promptmill.configs.columns import FORMAT, OF_ROWS
from promptmill.configs.errors import quoted
from promptmill.configs.schema import Config
from promptmill.jobs.planning.differences import differences
from promptmill.jobs.planning.plan import Plan, PlanError, Rerender, ShardPlan, drop_plan, earlier_plans, read_plan, write_plan
from promptmill.jobs.planning.row_changes import RowChanges, as_ranges
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.pipelines.work.metadata_rows import declared_columns
from promptmill.shards.commits import CommitRecord, read_records
from promptmill.shards.index import INDEX, SUCCESS
from promptmill.shards.storage import delete, join, names

# Whether changes are accepted, and what to do with committed rows that were edited; True raises an error that asks.
Accepting = bool | Literal["keep", "rerender"]


@dataclass(frozen=True)
class Change:
    """Holds a difference between a plan's inputs and those of now; as a string, the difference is the line for people.

    Attributes:
        place: The place in the plan's inputs, as `config.model.batch`.
        was, is_: The two values in words.
    """

    place: str
    was: str
    is_: str

    @property
    def of_rows(self) -> bool:
        """Return whether a file of the manifest changed."""
        return self.place.partition(".")[0] == "manifest"

    def __str__(self) -> str:
        return f"{self.place}: {self.was}, {self.is_}"


def changes(plan: Plan, inputs: Mapping[str, Any]) -> list[Change]:
    """List the differences between a plan's inputs and these."""
    return [
        # A hash tells a person only that the manifest is another, so the number of rows is added.
        Change(name, f"{was} ({plan.counts.rows:,} rows)" if name == "manifest.0" else was, is_)
        for name, was, is_ in differences(plan.inputs, inputs)
        if name.partition(".")[0] != "requests"
    ]


def is_of_rows(changed: Sequence[Change]) -> bool:
    """Return whether lines of `changes` are of the manifest's files alone: then each row decides whether anything changed."""
    return bool(changed) and all(change.of_rows for change in changed)


@dataclass(frozen=True)
class Aside:
    """Holds the earlier plans of an output, and what a new plan must stay compatible with.

    Attributes:
        plans: The earlier plans, by their fingerprints.
        accepted: By the same fingerprints, the changes since, a line each.
        committed: The shards that stay, by number.
        there: The plan that is about to be put aside; None where it was already.
        inputs: The new plan's inputs.
        again: Committed rows that are to be rendered again, because of these changes or of earlier ones.
    """

    output: str
    plans: Mapping[str, Plan]
    accepted: Mapping[str, Sequence[str]]
    committed: Mapping[int, CommitRecord]
    there: Plan | None
    inputs: Mapping[str, Any]
    again: tuple[Rerender, ...] = ()

    def size_of(self, number: int, size: int) -> int:
        """Return how many rows a shard takes: `size`, or as many as it was committed with."""
        return min(size, self.committed[number].requests) if number in self.committed else size

    def compare(self, found: RowChanges, now: ShardPlan, config: Config) -> None:
        """Compare a shard, as the manifest makes it now, with the shard planned in its place; add the differences to `found`."""
        committed, then = now.shard in self.committed, self._planned(now.shard)
        if then is None and self.there is None:
            return  # the plan was put aside already, and nobody knows what was planned here
        before = self._plan_of(now.shard) if committed else self.there
        found.see(then, now, before.config if before else config, config, committed)

    def compare_removed(self, found: RowChanges, shards: int, config: Config) -> None:
        """Compare the shards for which the manifest has no rows any more."""
        for number in range(shards, self.there.shards if self.there else 0):
            found.see(self._planned(number), None, config, config, False)

    def _planned(self, number: int) -> ShardPlan | None:
        if self.there is not None and number < self.there.shards:
            return read_shard(self.output, number, self.there)
        if number not in self.committed:
            return None
        # Where rows are to be rendered again, the shard's plan is of the plan that was never finished.
        return read_shard(self.output, number, self._plan_of(number) if self.stays(number) else None)

    def _plan_of(self, number: int) -> Plan | None:
        return self.plans.get(self.committed[number].fingerprint)

    def with_rerendered(self, edited: RowChanges) -> "Aside":
        """Return a copy in which the committed rows that were edited are to be rendered again.

        Where more changed than the manifest, all rows of their shards are, as `with_whole_shards` says.
        """
        again = {some.shard: some for some in self.again}
        for number, ranges in edited.committed.items():
            rows = Rerender(number, self.committed[number].generation, ranges)
            before = again[number].numbers if number in again else frozenset()
            again[number] = replace(rows, rows=as_ranges(sorted(rows.numbers | before)))
        return replace(self, again=tuple(again[number] for number in sorted(again))).with_whole_shards()

    def with_whole_shards(self) -> "Aside":
        """Return a copy in which all rows of a shard are to be rendered again where some are and more changed than the manifest.

        A shard is of one render config: otherwise its rows would be of two, and its images perhaps of two formats.
        """
        return replace(self, again=tuple(some if self._is_of_rows(some.shard) else self._whole(some) for some in self.again))

    def _is_of_rows(self, number: int) -> bool:
        plan = self._plan_of(number)
        changed = changes(plan, self.inputs) if plan is not None else None
        return changed is not None and (not changed or is_of_rows(changed))

    def _whole(self, some: Rerender) -> Rerender:
        return replace(some, rows=((0, self.committed[some.shard].requests - 1),))

    def committed_plan(self, now: ShardPlan) -> ShardPlan | None:
        """Return the plan that a shard was committed by and goes on with; None where rows of the shard are to be rendered again.

        Raises:
            PlanError: The shard's rows have other ids than the committed ones, so that rows would be lost, or rendered twice; or
                the shard's plan is not what the plan says.
        """
        number = now.shard
        ids = [id for _, id in sorted([(p.row, p.request.id) for p in now.requests] + [(bad.row, bad.id) for bad in now.bad])]
        plan = self._planned(number)
        assert plan is not None
        then = [id for _, id in sorted([(p.row, p.request.id) for p in plan.requests] + [(bad.row, bad.id) for bad in plan.bad])]
        if len(then) != len(ids):
            said = f"is committed with {len(then):,} rows, the manifest now gives it {len(ids):,}"
            raise PlanError([f"shard {number:06d} {said}; give another --out"])
        for row, (was, is_) in enumerate(zip(then, ids, strict=True)):
            if was != is_:
                said = f"is committed as {quoted(was)}, the manifest now has {quoted(is_)}; rows may be added behind the last only"
                raise PlanError([f"shard {number:06d}, row {row}: {said}: bring the committed rows back, or give another --out"])
        return plan if self.stays(number) else None

    def stays(self, number: int) -> bool:
        """Return whether a shard is committed and none of its rows are rendered again."""
        return number in self.committed and not any(some.shard == number for some in self.again)

    @property
    def dataset_format(self) -> int:
        """Return the format of a new plan's shards: the one of the shards that stay beside them."""
        return min(
            (self.plans[r.fingerprint].dataset_format for r in self.committed.values() if r.fingerprint in self.plans),
            default=FORMAT,
        )

    def check(self, made: Plan) -> None:
        """Raise PlanError where a new plan's shards cannot stand beside the committed ones."""
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
                ("the columns that the config declares", _names(plan), _names(made)),
                ("drafts", bool(plan.config.ranking.drafts), bool(made.config.ranking.drafts)),
                ("growing candidates", plan.growing, made.growing),
                *((f"{name} in rows", name in plan.form.names, name in made.form.names) for name in OF_ROWS),
            ):
                if then != now:
                    raise PlanError([f"{what}: {then} in the shards that are committed, {now} now; give another --out"])


def _names(plan: Plan) -> list[str]:
    return [column.name for column in declared_columns(plan.config)]


def look_aside(output: str, there: Plan | None, inputs: Mapping[str, Any]) -> Aside:
    """Compare inputs with the existing plan and the earlier ones, and return what a new plan must stay compatible with."""
    read = {fingerprint: read_plan(output, fingerprint) for fingerprint in earlier_plans(output)}
    plans = {fingerprint: plan for fingerprint, plan in read.items() if plan is not None}
    if there is not None:
        plans[there.fingerprint] = there
    accepted = {fingerprint: [*map(str, changes(plan, inputs))] for fingerprint, plan in sorted(plans.items())}
    committed = {record.shard: record for record in read_records(output)} if plans else {}
    pending = tuple(to_rerender(plans.values(), committed).values())
    # Rows that wait to be rendered again since an earlier change may meet another config by now.
    return Aside(output, plans, accepted, committed, there, inputs, pending).with_whole_shards()


def to_rerender(plans: Iterable[Plan], committed: Mapping[int, CommitRecord]) -> dict[int, Rerender]:
    """Return, by shard, the committed rows that plans want rendered again and that no later generation has made yet."""
    found: dict[int, Rerender] = {}
    for some in (some for plan in plans for some in plan.rerender):
        if some.shard in committed and committed[some.shard].generation == some.generation:
            before = found[some.shard].numbers if some.shard in found else frozenset()
            found[some.shard] = replace(some, rows=as_ranges(sorted(some.numbers | before)))
    return dict(sorted(found.items()))


def put_aside(output: str, there: Plan | None, again: tuple[Rerender, ...] = (), earlier: Plan | None = None) -> None:
    """Put the existing plan aside, and remove index, _SUCCESS and the parts made for the plan.

    This may be cut off anywhere and done again. The plan that is put aside says which rows are to be rendered `again`, since the
    plans of their shards are written over before the new plan is there. Where there is no plan, `earlier`, put aside before, says
    so.
    """
    if (holder := there or (earlier if again else None)) is not None:
        write_plan(output, replace(holder, rerender=again), earlier=True)
    for name in (SUCCESS, INDEX):
        delete(join(output, name))
    drop_plan(output)
    for name in names(join(output, "parts")):
        delete(join(output, "parts", name))
