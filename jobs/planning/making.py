"""Makes a plan: reads the manifest once, as a stream, checks every row, and writes shard after shard."""

import bisect
import itertools
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from types import MappingProxyType

from promptmill.jobs.planning.accepted_changes import Accepting, Aside, Change, changes, is_of_rows, look_aside, put_aside
from promptmill.jobs.planning.counts import Counts
from promptmill.jobs.planning.plan import Plan, PlanError, ShardPlan, read_plan, requests_hash, write_plan
from promptmill.jobs.planning.processes import MAX_SHARD, MAX_WORKERS, Made, Pool, cores
from promptmill.jobs.planning.row_changes import RowChanges
from promptmill.jobs.planning.shard_making import (
    NumberedRows,
    PackedShard,
    ShardRules,
    Tally,
    added,
    bad_row,
    count,
    kinds,
    make_shard,
    pack,
    with_units,
)
from promptmill.jobs.planning.shard_plans import drop_shards, read_shard, shard_hash
from promptmill.jobs.planning.shard_writing import ShardWriter
from promptmill.jobs.planning.sources import Sources
from promptmill.manifests.checking import Checked, RowChecks, find_doubled, rows_of
from promptmill.manifests.rows import Row
from promptmill.manifests.sources import ManifestError, is_own_output
from promptmill.pipelines.models.licences import licences_of
from promptmill.pipelines.work.metadata_rows import declared_columns
from promptmill.shards.storage import delete, join, names
from promptmill.shards.tables import RESERVED

MAX_IMAGES_CHECKED = 100_000  # further images are looked at when they are used, unless check_images says all
MAX_NOTES = 10  # of files that were left out
MAX_BUCKETS = 100_000  # counted
SHARED_FROM = 100_000  # rows, made here; only then are processes started to share those that follow

Progress = Callable[[int], None]


def make_plan(
    sources: Sources,
    output: str,
    progress: Progress = lambda rows: None,
    tuned_batch: int | None = None,
    accept_changes: Accepting = False,
) -> Plan:
    """Read the manifest and write the plan under the output, or return the existing plan where nothing changed.

    Memory does not grow with the manifest: one shard, or a few MiB for each process that shares the work, and 8 bytes a row.

    Args:
        sources: The plan's inputs.
        output: The dataset's URI.
        progress: Called with the number of rows read.
        tuned_batch: The denoising batch, where it was tuned.
        accept_changes: Whether a plan of other inputs is put aside, with the parts made for it; its committed shards stay. Where
            committed rows were edited, `keep` leaves their images and `rerender` has them rendered again; True raises an error that
            asks which.

    Raises:
        PlanError: A file of the manifest cannot be read to its end; bad rows, one line each, where the config does not say to
            record them; or the output has another plan.
    """
    there = read_plan(output)
    different = changes(there, sources.inputs) if there else []
    if there is not None and not different:
        # Image roots and runtime settings are those of this run, not of the plan.
        return replace(there, roots=sources.roots, config=sources.config)
    aside = look_aside(output, there, sources.inputs)
    doubled: Mapping[int, Checked] = {}
    if aside.plans:
        # The first pass writes nothing, so that an error comes before anything is put aside.
        try:
            looking = _look_through(sources, output, progress, aside)
        except PlanError as error:
            if accept_changes:
                raise
            raise PlanError([*_refusal(output, there, different), *error.problems]) from None
        rows, doubled = looking.compared, looking.doubled
        if there is not None and is_of_rows(different) and not rows and looking.requests == there.inputs["requests"]:
            # The file changed, by other line ends for example, but every request is the same.
            return replace(there, roots=sources.roots, config=sources.config)
        if not accept_changes:
            if is_of_rows(different) and rows.only_added:
                more = f"the manifest has {rows.added:,} more row{'' if rows.added == 1 else 's'} than were planned"
                raise PlanError([f"{output}: {more}; --accept-changes goes on with them", *rows.lines()])
            raise PlanError([*_refusal(output, there, different), *(rows.lines() if rows else [])])
        if rows.committed and accept_changes is True:
            ways = "--accept-changes=keep leaves their images as they are, --accept-changes=rerender renders these rows again"
            edited = (
                "1 committed row was edited" if rows.committed_rows == 1 else f"{rows.committed_rows:,} committed rows were edited"
            )
            raise PlanError([f"{output}: {edited}; {ways}:", *rows.lines(True)])
        if accept_changes == "rerender":
            aside = aside.with_rerendered(rows)
        put_aside(output, there, aside.again, next(iter(aside.plans.values())))
    making = _Making(sources, output, progress, aside, doubled=doubled)
    try:
        plan = making.run()
    except BaseException:
        making.clean()
        raise
    making.writer.close()
    plan = replace(plan, tuned_batch=tuned_batch, accepted=aside.accepted, rerender=aside.again)
    write_plan(output, plan)
    drop_shards(output, plan.shards)
    return plan


def _refusal(output: str, there: Plan | None, different: Sequence[Change]) -> list[str]:
    if there is None:
        return [f"{output}: its plan was put aside for changes; give --accept-changes to go on with these"]
    ways = "give another --out, go back on what changed, or give --accept-changes"
    return [f"{output} was planned from something else; {ways}:", *map(str, different)]


def _look_through(sources: Sources, output: str, progress: Progress, aside: Aside) -> "_Making":
    """Read the manifest without writing anything, and compare its rows with the planned ones."""
    looking = _Making(sources, output, progress, aside, writing=False)
    with closing(looking.writer):
        looking.run()
    if looking.doubled:
        # Repeated ids are only known at the end; each later row of such an id is a bad row.
        looking = _Making(sources, output, progress, aside, writing=False, doubled=looking.doubled)
        with closing(looking.writer):
            looking.run()
    return looking


class _Making:
    """Goes once over a manifest; `writing` the shards, or only finding errors."""

    def __init__(
        self,
        sources: Sources,
        output: str,
        progress: Progress,
        aside: Aside,
        writing: bool = True,
        doubled: Mapping[int, Checked] = MappingProxyType({}),
    ):
        self.sources, self.output, self.progress, self.aside, self.writing = sources, output, progress, aside, writing
        self.config = sources.config
        self.recording = self.config.runtime.on_bad_row == "record"
        self.left_out: list[str] = []
        reserved = RESERVED | {column.name for column in declared_columns(self.config)}
        model, drafts = self.config.model, self.config.ranking.drafts
        constants = (sources.counting, model.kernels.cache, self.config.all_stages, self.config.shards.controls)
        self.recipe = ShardRules(sources.files, sources.rules, model.batch, drafts, reserved, *constants)
        self.checks = RowChecks(sources.files, sources.rules, sources.roots, self.images_checked())
        self.tally, self.counts, self.buckets = Tally(reserved), Counts(), set[int]()
        self.hashes: list[str] = []
        self.ends = array("Q")  # of each shard, the number of its last row
        self.doubled = dict(doubled)  # rows whose id an earlier row has, by their numbers
        self.requests = ""
        self.compared = RowChanges()
        self.writer = ShardWriter(output)
        self.pool: Pool | None = None

    def images_checked(self) -> int | None:
        return {"all": None, "at_run": 0, "auto": MAX_IMAGES_CHECKED}[self.config.runtime.check_images]

    def run(self) -> Plan:
        try:
            self.go_through()
            self.aside.compare_removed(self.compared, len(self.hashes), self.config)
            self.mend_doubled()
        except ManifestError as error:
            # The error cannot be recorded as a bad row: nobody knows how many rows are behind it.
            raise self.refused(str(error)) from None
        if self.tally.problems and not self.recording:
            raise self.refused()
        if self.counts.rows == 0:
            raise self.refused("the manifest has no rows")
        if self.counts.rows == self.counts.bad:
            raise self.refused("no row makes a request")
        carried = self.tally.types.result()
        self.requests = requests_hash(self.hashes)
        inputs = {**self.sources.inputs, "requests": self.requests}
        counts = replace(self.counts, buckets=len(self.buckets))
        known = licences_of(self.config.weights())
        shards, width, roots = len(self.hashes), self.sources.embedding, self.sources.roots
        hashes, notes = tuple(self.hashes), self.notes()
        plan = Plan(inputs, shards, counts, carried, width, self.config, roots, licences=known, shard_hashes=hashes, notes=notes)
        plan = replace(plan, dataset_format=self.aside.dataset_format)
        self.aside.check(plan)
        if self.writing:
            self.writer.finish(number for number in range(shards) if not self.aside.stays(number))
        return plan

    def notes(self) -> tuple[str, ...]:
        """Return remarks on the manifest for a person though nothing is wrong, a line each."""
        lines = [
            f"{note} ({number:,} {'row' if number == 1 else 'rows, the first'}: {row})"
            for note, (number, row) in self.tally.noted.items()
        ]
        more = [f"… and {len(self.left_out) - MAX_NOTES:,} more files like it"] if len(self.left_out) > MAX_NOTES else []
        return (*lines, *self.left_out[:MAX_NOTES], *more)

    def go_through(self) -> None:
        """Make a shard of each `shards.size` rows, here or in the pool."""
        size = self.config.shards.size
        try:
            for number, rows in enumerate(self.shards()):
                # All shards are made here where their rows are compared with those of an earlier plan.
                alone = self.doubled or not self.writing or size > MAX_SHARD or cores() == 1
                if number * size >= SHARED_FROM and self.pool is None and not alone:
                    self.pool = Pool(self.recipe, self.take, min(cores(), MAX_WORKERS))
                if not self.share(number, rows):
                    self.drain()
                    self.make(rows)
            self.drain()
        finally:
            if self.pool:
                self.pool.close()

    def shards(self) -> Iterator[NumberedRows]:
        """Yield the rows of each shard; problems of rows that end up in no shard are noted."""
        rows: list[tuple[int, Row]] = []
        shard = 0
        try:
            for numbered in enumerate(rows_of(self.sources.files, self.sources.rules, self.left_out.append), 1):
                rows.append(numbered)
                # A shard that was committed with fewer rows stays as it is; rows added behind them begin another.
                if len(rows) == self.aside.size_of(shard, self.config.shards.size):
                    yield rows
                    rows, shard = [], shard + 1
        except ManifestError:
            self.drain()
            for number, row in rows:
                self.tally.see(self.checks.check(number, row))
            raise
        if rows:
            yield rows

    def share(self, shard: int, rows: NumberedRows) -> bool:
        """Give a shard to the pool; return False where there is no pool yet, or the shard needs more than its rows."""
        if self.pool is None or not self.pool.ready() or shard in self.aside.committed:
            return False
        return not any(self.checks.looks(row) for _, row in rows) and self.pool.give(shard, rows)

    def drain(self) -> None:
        if self.pool:
            self.pool.drain()

    def take(self, shards: Iterable[NumberedRows], made: Made) -> None:
        """Take over the shards that a worker has made, or make them here."""
        if made is None or not self.tally.join(made[1]):
            for rows in shards:
                self.make(rows)
            return
        for shard in made[0]:
            self.keep(shard)

    def make(self, rows: NumberedRows) -> None:
        """Make the next shard."""
        number = len(self.hashes)
        checked = [self.tally.see(self.doubled.get(row) or self.checks.check(row, values)) for row, values in rows]
        shard = make_shard(self.recipe, number, checked)
        if not self.writing:
            self.aside.compare(self.compared, shard, self.config)
        # A committed shard stays, whatever its rows are now, unless they are to be rendered again.
        stays = self.aside.committed_plan(shard) if number in self.aside.committed else None
        if stays is None:
            self.keep(pack(self.recipe, shard))
        else:
            self.keep(PackedShard(b"", shard_hash(stays), count(self.recipe, stays), kinds(stays)), write=False)

    def keep(self, shard: PackedShard, write: bool = True) -> None:
        """Count the next shard, and write the shard."""
        # A plan with errors is not written.
        if write and self.writing and (self.recording or not self.tally.problems):
            number = len(self.hashes)
            self.writer.write(number, shard.content, committed=number in self.aside.committed)
        self.hashes.append(shard.hash)
        self.counts = added(self.counts, shard.counts)
        self.ends.append(self.counts.rows)
        self.see_kinds(shard.kinds)
        if shard.counts.rows == self.config.shards.size:
            self.progress(self.counts.rows)

    def see_kinds(self, kinds: Iterable[Hashable]) -> None:
        if len(self.buckets) < MAX_BUCKETS:
            self.buckets |= {hash(kind) for kind in kinds}

    def refused(self, *reasons: str) -> PlanError:
        more = self.tally.wrong - len(self.tally.problems)
        lines = [*self.tally.problems, *([f"… and {more:,} more like these"] if more else [])]
        for file in self.sources.files:
            if file in self.tally.lacking and is_own_output(file):
                lines.append(
                    f"{file}: was rendered by promptmill, so its image paths start from the folder of the manifest"
                    " that it was rendered from; name that folder in runtime.image_roots"
                )
                break
        return PlanError([*lines, *reasons])

    def mend_doubled(self) -> None:
        """Turn rows whose id an earlier row has into bad rows, in the shards already written."""
        self.writer.wait()
        found = find_doubled(self.sources.files, self.sources.rules, self.tally.ids, self.tally.bad)
        for number, some in itertools.groupby(found, lambda checked: bisect.bisect_left(self.ends, checked.number)):
            first = self.ends[number - 1] + 1 if number else 1
            doubled = {checked.number - first: checked for checked in some}
            for checked in doubled.values():
                self.tally.note(checked.lines())
                self.doubled[checked.number] = checked
            if not self.writing or not self.recording or number in self.aside.committed:
                continue
            shard = read_shard(self.output, number)
            kept = tuple(placed for placed in shard.requests if placed.row not in doubled)
            new = [bad_row(row, checked) for row, checked in doubled.items()]
            bad = sorted([*shard.bad, *new], key=lambda bad: bad.row)
            mended = pack(self.recipe, with_units(self.recipe, ShardPlan(number, kept, (), tuple(bad))))
            self.counts = added(added(self.counts, count(self.recipe, shard), -1), mended.counts)
            self.see_kinds(mended.kinds)
            self.hashes[number] = mended.hash
            self.writer.write(number, mended.content)

    def clean(self) -> None:
        """Remove the files that were written."""
        self.writer.close()
        folder = join(self.output, "plan", "shards")
        for name in names(folder):
            number = name.split(".")[0]
            if number.isdigit() and int(number) not in self.aside.committed:
                delete(join(folder, name))
