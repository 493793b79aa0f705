"""Renders the units of a plan that are left: units go through the lanes, and a shard is assembled once its parts are complete."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from promptmill.actors.flow.actor_slots import (
    PATIENCE,
    AbortError,
    DeadlineError,
    DiedError,
    LostError,
    MemoryRanOutError,
    StartError,
    StepBackError,
    UnfitError,
)
from promptmill.actors.flow.events import Both, Guarded, Listener
from promptmill.actors.flow.lanes import Lanes
from promptmill.actors.flow.workers import Workers
from promptmill.actors.local_ray.memory_limits import MEMORY, REMEDY
from promptmill.actors.receipts import Receipt
from promptmill.jobs.planning.plan import BadRow, Plan, put_hardware, read_hardware
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.running.failure_budget import FailureBudget
from promptmill.jobs.running.open_shard import Open, units_of
from promptmill.jobs.running.sites import Site
from promptmill.jobs.running.stats import Stats
from promptmill.jobs.running.stopping import Stop
from promptmill.pipelines.scoring.staging import resumed_at_stage
from promptmill.pipelines.work.metadata_rows import failed_unit
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Code, Failure
from promptmill.pipelines.work.units import Unit, sample_key
from promptmill.shards.assembly import Assembly
from promptmill.shards.commits import CommitRecord
from promptmill.shards.lease import Lease
from promptmill.shards.parts import part_name, write_part
from promptmill.shards.storage import join, names, put

ASSEMBLING = 2  # shards at a time


MOST_WAITING = 16  # rendered units that wait for a scorer, beside one for each generator: they are lost with the driver


UNFIT_S = 180.0  # that a run waits for a node of the right kind of hardware, where there are several nodes


class StoppedError(Exception):
    """Reports a run that the user stopped, and that can be resumed."""


@dataclass
class Run:
    """Runs a plan once, from where the last run ended.

    Attributes:
        plan: The output's plan.
        output: The dataset's URI.
        listener: Told of every unit and shard.
        parts: Names of the parts that are there.
        records: By shard, the record of each that is committed; those that this run commits come to them.
        again: By shard, the rows of committed ones that are rendered again, counted from 0 in the shard.
        generations: By shard, the generation that those that are not committed are committed as, where it is not 0.
        only: Those shards that are rendered, of the ones that are not committed; None for all.
        lease: Says whether somebody else has taken the output over.
        stop: Through which the user asks to stop.
        settled, misfits: Number of units so far, and of those of them that did not fit into memory.
        fitting: Whether a worker has come up on the plan's kind of hardware.
        nodes: Number of machines in the cluster, as the run began.
        say: Told each thing that is worth a line.
    """

    plan: Plan
    output: str
    listener: Listener
    parts: frozenset[str]
    records: dict[int, CommitRecord]
    again: Mapping[int, frozenset[int]] = field(default_factory=dict)
    generations: Mapping[int, int] = field(default_factory=dict)
    only: Collection[int] | None = None
    lease: Lease | None = None
    stop: Stop = field(default_factory=Stop)
    open: dict[int, Open] = field(default_factory=dict)
    workers: Workers | None = None
    stopped: bool = False
    settled: int = 0
    misfits: int = 0
    fitting: bool = False
    nodes: int = 1
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        config = self.plan.config
        self.recipe = self.plan.recipe(self.output)
        self._assembling: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._unfit_since: float | None = None
        self._slow_said = False
        self._turns = asyncio.Semaphore(ASSEMBLING)
        self.stats = Stats(self.output)
        self.told: Listener = Guarded(self.listener, "showing how the run goes")
        # A repair makes what was there, failures too.
        allowed = config.runtime.max_failed if self.only is None else None
        there = (record for shard, record in self.records.items() if shard not in self.again)
        self.budget = FailureBudget.beside(allowed, self.plan.counts.candidates, there)
        wanted = range(self.plan.shards) if self.only is None else self.only
        self.left = {number for number in wanted if number not in self.records} | set(self.again)

    async def render(self, site: Site) -> None:
        """Render the units that are left, and commit every shard.

        Raises:
            ResourcesError, StartError: The cluster has no room, or actors do not start.
            StoppedError: The user asked to stop, and what was in flight is durable.
            AbortError: More candidates have failed than `runtime.max_failed`, and what was in flight is durable.
        """
        self.nodes = site.nodes
        if site.listener is not None:
            self.told = Both(self.told, site.listener)
        self.told.ready(site.sizes)
        self._say_what_loading_takes()
        self.workers = workers = site.workers(self.recipe, self.generator_loaded, self.check_hardware)
        # Shards whose parts are all there are assembled at once; where nothing is left to render, no model is loaded for them.
        units = self.units()
        first = next(units, None)
        lanes = Lanes(
            itertools.chain([] if first is None else [first], units),
            workers.generators,
            workers.scorers,
            self.convict,
            lambda unit: self.open[unit.shard].split(unit),
            waiting=min(2 * site.sizes.scorers + 2, MOST_WAITING),
        )
        try:
            with self.stop_on_request(lanes), self.stop_without_lease(), self.stop_with(site):
                if first is not None:
                    await self.settle_all(lanes)
                await asyncio.gather(*self._assembling)
        finally:
            workers.close()
        if self._broken:
            raise self._broken
        if self.budget.spent and self.left:
            raise AbortError(self.budget.why)
        # A stop that comes when nothing is left has nothing to stop.
        if self.stopped and self.left:
            raise StoppedError

    def _say_what_loading_takes(self) -> None:
        if self.plan.config.model.kernels.compile:
            self.say("loading: each generator compiles the model's blocks first, which takes minutes the first time on a node")

    def units(self) -> Iterator[Unit]:
        """Yield the units that have no part, shard by shard; drawn as the lanes have room."""
        for number in range(self.plan.shards):
            if number not in self.left:
                if number in self.records:
                    self.told.skipped(self.records[number].candidates)
                continue
            plan, shard, config = read_shard(self.output, number, self.plan), self.opened(number), self.plan.config
            units = shard.take_in(units_of(shard, plan, config), self.parts, config.model.batch, bool(config.all_stages))
            self.told.skipped(plan.candidates - sum(unit.candidates for unit in units))
            self.open[number] = shard
            if not units:
                self.assemble(number)
            for unit in units:
                yield resumed_at_stage(unit, self.parts, self.recipe)

    def opened(self, number: int) -> Open:
        before = self.records.get(number)
        if before is None:
            return Open(number, self.generations.get(number, 0))
        return Open(number, before.generation + 1, before, self.again[number])

    async def settle_all(self, lanes: Lanes) -> None:
        """Settle the units of the lanes until none is left, or until the run is to end."""
        async for receipt in lanes.run():
            await self.settle(receipt)
            if self.budget.spent:
                lanes.stop()  # what is in flight is finished
            if self._broken:
                break

    async def settle(self, receipt: Receipt) -> None:
        self.settled += 1
        await self._note(receipt)
        self.open[receipt.shard].left.discard(receipt.name)
        if not self.open[receipt.shard].left:
            self.assemble(receipt.shard)

    async def _note(self, receipt: Receipt) -> None:
        self.budget.add(receipt.failed, receipt.errors)
        self.told.unit(receipt)
        self.stats.add(receipt)
        if self.stats.full and (taken := self.stats.take()):
            await asyncio.to_thread(put, *taken)

    async def convict(self, unit: Unit, failures: Sequence[Exception]) -> Receipt:
        """Settle a unit that cannot be rendered or scored, by a part that says so."""
        last = failures[-1]
        code = _code(last)
        self.misfits += code == "out_of_memory"
        if self.misfits >= PATIENCE and self.settled < self.misfits:
            way = ": `promptmill plan --tune` finds the batch that fits" if isinstance(last, UnfitError) else ""
            raise AbortError(f"{last}; no unit has got through{way}")
        batch = f"at batch {self.plan.config.model.batch}; set model.batch lower"
        # What the process said as it died has hosts and numbers of processes in it: that is for stats/, not for the dataset.
        said = {
            "out_of_memory": f"{MEMORY} {batch}" if isinstance(last, UnfitError) else f"{MEMORY} outside of the GPU; {REMEDY}",
            "deadline": f"not done within runtime.unit_deadline_s, {self.plan.config.runtime.unit_deadline_s:g} s",
            "died": "its process failed each time that it was rendered alone",
        }
        rows, form = failed_unit(self.recipe, unit, Failure(code, said[code])), self.recipe.form_of(unit)
        size = await asyncio.to_thread(write_part, self.output, part_name(unit.name), rows, form, self.plan.fingerprint)
        return replace(Receipt.of(unit, rows, [], {}), part_bytes=size, reasons=tuple(map(_said, failures)))

    def assemble(self, shard: int) -> None:
        task = asyncio.get_running_loop().create_task(self._assemble(self.open.pop(shard)))
        self._assembling.add(task)
        task.add_done_callback(self._assembled)

    def _assembled(self, task: asyncio.Task[None]) -> None:
        self._assembling.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._broken = self._broken or error

    async def _assemble(self, shard: Open) -> None:
        assert self.workers is not None
        async with self._turns:
            for unit, slices in shard.joins.values():
                fresh = [one.name for one in slices if part_name(one.name) not in self.parts]
                await self._note(await self.workers.join(self.recipe, unit, slices, fresh))
            # Read again: shards that wait for their turn, many at a resume, would fill the memory with theirs.
            plan = await asyncio.to_thread(read_shard, self.output, shard.shard, self.plan)
            made_of = Assembly(
                shard=plan.shard,
                parts=shard.parts,
                failed=[bad_row(self.recipe, plan.shard, bad) for bad in plan.bad if not shard.before or bad.row in shard.again],
                requests=len(plan.requests) + len(plan.bad),
                planned=plan.candidates,
                generation=shard.generation,
                before=shard.before,
                again=shard.again,
                others=sorted({part_name(name) for name in shard.others} | await self._left_by_passes(shard)),
            )
            record = await self.workers.assemble(self.recipe, made_of)
        self.records[shard.shard] = record
        self.left.discard(shard.shard)
        self.told.shard(record)

    async def _left_by_passes(self, shard: Open) -> set[str]:
        """Return the names of what passes of a shard's units have left, in whatever generation and run."""
        if not shard.passing:
            return set()
        there = await asyncio.to_thread(names, join(self.output, "parts"))
        return {name for name in there if name.startswith(tuple(shard.passing))}

    def generator_loaded(self, kind: dict[str, str]) -> None:
        self.check_hardware(kind)
        if "gpu" in kind and self.plan.config.model.dtype == "float32" and not self._slow_said:
            self._slow_said = True
            self.say("model.dtype float32 leaves a GPU's tensor cores unused; bfloat16 or float16 is many times as fast")
        self.told.loaded()

    def check_hardware(self, kind: dict[str, str]) -> None:
        """Compare a worker's kind of hardware with the plan's, which is the first worker's.

        Another kind would make other bits, so such a worker steps back for the others.

        Raises:
            StepBackError: The worker is of another kind, and others may come that are not.
            StartError: No worker of the right kind has come for a while, or none other can come.
        """
        if not put_hardware(self.output, kind):
            first = read_hardware(self.output)
            if first != kind and not self.plan.config.runtime.mixed_hardware:
                differs = (name for name in {**first, **kind} if first.get(name) != kind.get(name))
                said = ", ".join(f"{name} {first.get(name)} → {kind.get(name)}" for name in differs)
                other = f"this hardware makes other bits than what began the run ({said})"
                self._unfit_since = self._unfit_since or time.monotonic()
                if self.fitting or (self.nodes > 1 and time.monotonic() - self._unfit_since < UNFIT_S):
                    self.say(f"a node steps back: {other}")
                    raise StepBackError(other)
                raise StartError(f"{other}; runtime.mixed_hardware allows it")
        self.fitting = True

    @contextlib.contextmanager
    def stop_without_lease(self) -> Iterator[None]:
        """Stop the run at once where another run has taken the output over."""
        loop, work, lease = asyncio.get_running_loop(), asyncio.current_task(), self.lease
        assert work is not None
        if lease is None:
            yield
            return

        def lost() -> None:
            self._broken = AbortError(lease.why)
            work.cancel()

        def tell() -> None:  # from the thread that renews
            loop.call_soon_threadsafe(lost)

        lease.on_lost = tell
        try:
            yield
        finally:
            lease.on_lost = None

    @contextlib.contextmanager
    def stop_with(self, site: Site) -> Iterator[None]:
        """Stop the run at once where the place of the workers has gone."""
        loop, work = asyncio.get_running_loop(), asyncio.current_task()
        assert work is not None

        def gone(error: Exception) -> None:
            self._broken = error
            work.cancel()

        def tell(error: Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(gone, error)

        with site.watched(tell):
            yield

    @contextlib.contextmanager
    def stop_on_request(self, lanes: Lanes) -> Iterator[None]:
        """Stop the run: at the first request once what is in flight is finished, at the second at once."""
        work = asyncio.current_task()
        assert work is not None

        def asked() -> None:
            if self.stopped:
                work.cancel()
                return
            self.stopped = True
            self.told.stopping(lanes.under_way)
            lanes.stop()

        try:
            with self.stop.heard(asked):
                yield
        except asyncio.CancelledError:
            raise (self._broken or StoppedError()) from None


def _code(failure: Exception) -> Code:
    """Return the error code of a unit that failed at last."""
    if isinstance(failure, MemoryRanOutError):
        return "out_of_memory"
    return "deadline" if isinstance(failure, DeadlineError) else "died"


def _said(failure: Exception) -> str:
    return str(failure) if isinstance(failure, DiedError | LostError) else f"{type(failure).__name__}: {failure}"


def bad_row(recipe: Recipe, shard: int, bad: BadRow) -> dict[str, Any]:
    """Return the metadata of a row that makes no request."""
    model = recipe.config.model
    return {
        "key": sample_key(shard, bad.row, None),
        "id": bad.id,
        "selected": False,
        "status": "failed",
        "error": "bad_row",
        "error_message": bad.message,
        "prompt": bad.prompt,
        "model": model.base,
        "revision": model.revision,
        "dtype": model.dtype,
        "versions": recipe.versions,
        "shard": shard,
    }
