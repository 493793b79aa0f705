"""Runs a plan: the units that are left go through the lanes, shards are assembled as their parts are complete."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from actors.assembler import assemble_shard
from actors.pools import Sizes, size_pools
from actors.receipts import Receipt
from jobs.cluster import cluster, generators, scorers
from jobs.lanes import Lanes, StartError
from jobs.plan import BadRow, Plan, ShardPlan, read_shard
from jobs.stats import Stats
from manifests.carried import arrow_types
from pipelines.results import Code, Failure
from pipelines.rows import Facts, failed_unit
from pipelines.units import Unit, sample_key
from shards.card import CARD, Made, ModelMade, card
from shards.commits import CommitRecord, check_plan, read_records
from shards.index import Totals, publish_index, total
from shards.parts import part_name, write_part
from shards.storage import delete, get, join, names, put, put_if_absent
from shards.tables import schema

ASSEMBLING = 2  # shards at a time


class Listener(Protocol):
    """What wants to know how a run goes."""

    def ready(self, sizes: Sizes) -> None: ...
    def loaded(self) -> None: ...
    def skipped(self, candidates: int) -> None: ...
    def unit(self, receipt: Receipt) -> None: ...
    def shard(self, record: CommitRecord) -> None: ...
    def stopping(self) -> None: ...


class StoppedError(Exception):
    """The user stopped the run; it can be resumed."""


@dataclass
class Open:
    """A shard under way: the units that have no part yet, and what its assembly needs."""

    plan: ShardPlan
    left: set[str]

    @property
    def parts(self) -> list[str]:
        return [part_name(self.plan.shard, number) for number in range(len(self.plan.units))]


@dataclass
class Run:
    """One run of a plan, from where the last one ended.

    Args:
        output: The dataset's URI.
        listener: Told of every unit and shard.
        parts: Those that are there.
        records: Of each shard that is committed; those that this run commits come to them.
    """

    plan: Plan
    output: str
    listener: Listener
    parts: frozenset[str]
    records: dict[int, CommitRecord]
    open: dict[int, Open] = field(default_factory=dict)
    sizes: Sizes | None = None
    stopped: bool = False

    def __post_init__(self) -> None:
        config = self.plan.config
        self.facts = Facts(config, self.plan.carried, json.dumps(self.plan.inputs["versions"], sort_keys=True))
        self.form = schema(arrow_types(self.plan.carried), self.plan.embedding)
        self._assembling: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._turns = asyncio.Semaphore(ASSEMBLING)
        self.stats = Stats(self.output)

    async def render(self, nodes: list[dict[str, float]]) -> None:
        """Render what is left, and commit every shard.

        Raises:
            ResourcesError, StartError: The cluster has no room, or actors do not start.
            StoppedError: The user asked to stop, and what was in flight is durable.
        """
        config = self.plan.config
        self.sizes = sizes = size_pools(nodes, config.runtime, config.model.threads)
        self.listener.ready(sizes)
        lanes = Lanes(
            self.units(),
            generators(self.plan, sizes, self.check_hardware),
            scorers(self.plan, sizes, self.output, self.facts, self.form),
            self.convict,
            waiting=2 * sizes.scorers + 2,
        )
        with self.stop_on_interrupt(lanes):
            async for receipt in lanes.run():
                await self.settle(receipt)
                if self._broken:
                    break
            await asyncio.gather(*self._assembling)
        if self._broken:
            raise self._broken
        # A stop that comes when nothing is left has nothing to stop.
        if self.stopped and len(self.records) < self.plan.shards:
            raise StoppedError

    def units(self) -> Iterator[Unit]:
        """The units that have no part, shard by shard; drawn as the lanes have room."""
        for number in range(self.plan.shards):
            if number in self.records:
                self.listener.skipped(self.records[number].candidates)
                continue
            plan = read_shard(self.output, number)
            units = [unit for unit in plan.cut() if part_name(unit.shard, unit.number) not in self.parts]
            self.listener.skipped(plan.candidates - sum(unit.candidates for unit in units))
            self.open[plan.shard] = Open(plan, {unit.name for unit in units})
            if not units:
                self.assemble(plan.shard)
            yield from units

    async def settle(self, receipt: Receipt) -> None:
        self.listener.unit(receipt)
        self.stats.add(receipt)
        if self.stats.full and (taken := self.stats.take()):
            await asyncio.to_thread(put, *taken)
        self.open[receipt.shard].left.discard(receipt.name)
        if not self.open[receipt.shard].left:
            self.assemble(receipt.shard)

    async def convict(self, unit: Unit, reasons: list[str]) -> Receipt:
        """Settle a unit that cannot be done: a part that says so."""
        reason = reasons[-1]
        code: Code = "out_of_memory" if "out of memory" in reason else "deadline" if "deadline" in reason else "died"
        # What the process said as it died has hosts and numbers of processes in it: that is for stats/, not for the dataset.
        said = {
            "out_of_memory": f"out of memory at batch {self.plan.config.model.batch}; set model.batch lower",
            "deadline": f"not done within runtime.unit_deadline_s, {self.plan.config.runtime.unit_deadline_s:g} s",
            "died": "its process failed each time that it was rendered alone",
        }
        rows = failed_unit(self.facts, unit, Failure(code, said[code]))
        await asyncio.to_thread(write_part, self.output, part_name(unit.shard, unit.number), rows, self.form, self.plan.fingerprint)
        return replace(Receipt.of(unit, rows, [], {}), reasons=tuple(reasons))

    def assemble(self, shard: int) -> None:
        task = asyncio.get_running_loop().create_task(self._assemble(self.open.pop(shard)))
        self._assembling.add(task)
        task.add_done_callback(self._assembled)

    def _assembled(self, task: asyncio.Task[None]) -> None:
        self._assembling.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._broken = self._broken or error

    async def _assemble(self, shard: Open) -> None:
        assert self.sizes is not None
        async with self._turns:
            plan = shard.plan
            arguments = {
                "output": self.output,
                "shard": plan.shard,
                "parts": shard.parts,
                "failed": [bad_row(self.facts, plan.shard, bad) for bad in plan.bad],
                "form": self.form,
                "image_format": self.plan.config.shards.image_format,
                "requests": len(plan.requests) + len(plan.bad),
                "planned": plan.candidates,
                "fingerprint": self.plan.fingerprint,
            }
            record = await assemble_shard.options(num_cpus=self.sizes.task_cpus).remote(arguments)
        self.records[plan.shard] = record
        self.listener.shard(record)

    def check_hardware(self, kind: dict[str, str]) -> None:
        """The first worker's kind of hardware is the plan's; another kind would make other bits."""
        self.listener.loaded()
        uri = join(self.output, "plan", "hardware.json")
        mine = json.dumps(kind, indent=1, sort_keys=True) + "\n"
        if put_if_absent(uri, mine.encode()):
            return
        first = json.loads(get(uri))
        if first != kind and not self.plan.config.runtime.mixed_hardware:
            said = ", ".join(
                f"{name} {first.get(name)} → {kind.get(name)}" for name in {**first, **kind} if first.get(name) != kind.get(name)
            )
            raise StartError(f"this hardware makes other bits than what began the run ({said}); runtime.mixed_hardware allows it")

    @contextlib.contextmanager
    def stop_on_interrupt(self, lanes: Lanes) -> Iterator[None]:
        """The first Ctrl-C finishes what is in flight, the second stops at once."""
        loop, work = asyncio.get_running_loop(), asyncio.current_task()
        assert work is not None

        def interrupted() -> None:
            if self.stopped:
                work.cancel()
                return
            self.stopped = True
            self.listener.stopping()
            lanes.stop()

        try:
            loop.add_signal_handler(signal.SIGINT, interrupted)
            loop.add_signal_handler(signal.SIGTERM, interrupted)
        except (ValueError, NotImplementedError, RuntimeError):
            yield  # not the main thread: whoever runs us there stops us otherwise
            return
        try:
            yield
        except asyncio.CancelledError:
            raise StoppedError from None
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            loop.remove_signal_handler(signal.SIGTERM)


def bad_row(facts: Facts, shard: int, bad: BadRow) -> dict[str, Any]:
    """The metadata of a row that makes no request."""
    model = facts.config.model
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
        "versions": facts.versions,
        "shard": shard,
    }


def run(plan: Plan, output: str, listener: Listener, say: Callable[[str], None] = lambda line: None) -> Totals:
    """Run a plan to its end, or go on where an earlier run was cut off.

    Returns:
        What the finished dataset holds, by its commit records.

    Raises:
        ClusterError, ResourcesError, StartError, StoppedError: One line each.
        CommitError: What is committed there is of another plan.
        PartError, StorageError: Parts are broken, or the output cannot be read or written.
    """
    config = plan.config
    records = {record.shard: record for record in read_records(output)}
    check_plan(output, records.values(), plan.fingerprint)
    here = Run(plan, output, listener, frozenset(names(join(output, "parts"))), records)
    if len(records) < plan.shards:
        say("starting Ray")
        try:
            with cluster(config.runtime.address) as nodes:
                asyncio.run(here.render(nodes))
        finally:
            here.stats.flush()
    return finish(plan, output, here)


def finish(plan: Plan, output: str, here: Run) -> Totals:
    """What comes last: the card, the index, the mark of success; then the parts, which have done their duty, go."""
    records = [here.records[shard] for shard in sorted(here.records)]
    made = Made(
        totals=total(records),
        form=here.form,
        image_format=plan.config.shards.image_format,
        quality=plan.config.shards.quality,
        models=models(plan),
        modes=plan.counts.modes,
        fingerprint=plan.fingerprint,
    )
    put(join(output, CARD), card(made))
    publish_index(output, records, plan.shards)
    for name in names(join(output, "parts")):
        delete(join(output, "parts", name))
    return made.totals


def models(plan: Plan) -> list[ModelMade]:
    """All models that take part, for the card."""
    model, ranking = plan.config.model, plan.config.ranking
    made = [ModelMade("base", model.base, model.revision)]
    if model.vae:
        made.append(ModelMade("VAE", model.vae.source, model.vae.revision))
    made += [ModelMade(f"ControlNet {name}", w.source, w.revision) for name, w in model.controlnets.items()]
    made += [ModelMade(f"LoRA {w.name}", w.source, w.revision) for w in model.loras]
    made += [ModelMade(f"textual inversion {w.token}", w.source, w.revision) for w in model.textual_inversions]
    name = f"{ranking.model}/{ranking.pretrained}" if ranking.pretrained else ranking.model
    return [*made, ModelMade("scorer", name, ranking.revision)]
