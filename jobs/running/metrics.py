"""Shows a run to Prometheus, through Ray's own metrics: recorded by the driver, from receipts, records, and calls of actors.

Ray exports each as ray_NAME at its node's metrics port, every `metrics_report_interval_ms` (10 s). docs/metrics.md has the table,
jobs/deploy/grafana.json the panels.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal
from urllib.parse import quote

from ray.util import metrics as ray_metrics

from promptmill.actors.flow.actor_slots import AbortError, Actor, DiedError, LostError, MemoryRanOutError, Pool, StartError
from promptmill.actors.flow.events import Guard
from promptmill.actors.pool_sizes import Sizes
from promptmill.actors.receipts import Receipt
from promptmill.shards.commits import CommitRecord

PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")  # what a label shows as it is
SHOWN_S = 1.0  # how often gauges are set: Ray forgets one that is not set for two of its report intervals

PoolName = Literal["generators", "scorers"]


@dataclass(frozen=True)
class Metric:
    """Describes one metric.

    All metrics carry the label `dataset`, the last part of the output's path (see `label_of`); none has a prompt or a key.

    Attributes:
        labels: The metric's labels beside `dataset`.
    """

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    labels: tuple[str, ...] = ()


METRICS = (
    Metric("promptmill_images_total", "counter", "Kept images in the shards committed by this run."),
    Metric("promptmill_candidates_total", "counter", "Candidates settled by this run, by what became of them.", ("outcome",)),
    Metric("promptmill_candidates_settled", "gauge", "Candidates settled, by this run and those before it."),
    Metric("promptmill_candidates_planned", "gauge", "Candidates of the whole plan."),
    Metric("promptmill_failures_total", "counter", "Rows of failed candidates and requests, by error code.", ("reason",)),
    Metric("promptmill_units_total", "counter", "Units, or pieces of units, settled."),
    Metric("promptmill_units_given_up_total", "counter", "Units settled as failed since their tries kept failing."),
    Metric("promptmill_units_recomputed_total", "counter", "Units, or pieces, handed to a generator again after a failed try."),
    Metric("promptmill_tries_failed_total", "counter", "Calls of actors that failed, by reason.", ("pool", "reason")),
    Metric("promptmill_units_in_flight", "gauge", "Units that actors are at.", ("pool",)),
    Metric("promptmill_units_waiting", "gauge", "Rendered units that wait for a scorer."),
    Metric("promptmill_shards_total", "counter", "Shards committed."),
    Metric("promptmill_written_bytes_total", "counter", "Bytes of tars (data), Parquets (metadata) and parts.", ("files",)),
    Metric("promptmill_stage_seconds_total", "counter", "Seconds that actors spent on settled units, by stage.", ("stage",)),
    Metric("promptmill_generator_busy_seconds_total", "counter", "Seconds that generators spent on units that were settled."),
    Metric("promptmill_generator_alive_seconds_total", "counter", "Seconds that generators were there, their model loaded."),
    Metric("promptmill_actors_alive", "gauge", "Actors that are there, their model loaded.", ("pool",)),
    Metric("promptmill_actors_wanted", "gauge", "Actors that the run is to have.", ("pool",)),
    Metric("promptmill_actor_deaths_total", "counter", "Actors that died or were ended, and are replaced.", ("pool",)),
)


@cache
def _instrument(name: str) -> ray_metrics.Counter | ray_metrics.Gauge:
    """Return Ray's side of a metric, made once a process, where it outlives clusters."""
    metric = next(metric for metric in METRICS if metric.name == name)
    made = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    return made(name, metric.meaning, ("dataset", *metric.labels))


def record(name: str, value: float, labels: dict[str, str]) -> None:
    """Add to a counter, or set a gauge, in Ray."""
    instrument = _instrument(name)
    if isinstance(instrument, ray_metrics.Gauge):
        instrument.set(value, labels)
    elif value > 0:  # a counter refuses to be added nothing
        instrument.inc(value, labels)


def label_of(output: str) -> str:
    """Return the last part of an output's path as a label, which Ray takes in ASCII only: other characters are percent-encoded."""
    name = output.partition("?")[0].rstrip("/").rpartition("/")[2]
    return quote(name, safe=PRINTABLE, errors="surrogateescape")


class Metrics:
    """Counts a run for its metrics: a listener, and a watch on the pools.

    Counters start with the run, a resumed one's anew. Nothing that `put` raises reaches the run: the first failure is said on
    stderr.

    Args:
        output: The dataset's URI.
        planned: Number of candidates of the plan.
        put: Called with a metric's name, the number to add or set, and the labels.
    """

    def __init__(self, output: str, planned: int, put: Callable[[str, float, dict[str, str]], None] = record):
        self._dataset = label_of(output)
        self._planned, self._put = planned, put
        self.guard = Guard("recording metrics")
        self._gauges: dict[tuple[str, str | None], float] = {}
        self._settled = 0
        self._alive: Counter[str] = Counter()
        self._in_flight: Counter[str] = Counter()
        self._waiting = 0
        self._again: set[str] = set()  # units whose last try failed, and is no fault of theirs
        self._seen = time.monotonic()

    def ready(self, sizes: Sizes) -> None:
        self.show("promptmill_candidates_planned", self._planned)
        self._progress(0)

    def loaded(self) -> None: ...

    def skipped(self, candidates: int) -> None:
        self._progress(candidates)

    def unit(self, receipt: Receipt) -> None:
        for outcome, number in receipt.shown.items():
            self.put("promptmill_candidates_total", number, outcome=outcome)
        for reason, number in receipt.errors.items():
            self.put("promptmill_failures_total", number, reason=reason)
        for stage, seconds in receipt.seconds.items():
            self.put("promptmill_stage_seconds_total", seconds, stage=stage)
        self.put("promptmill_units_total", 1)
        self.put("promptmill_units_given_up_total", int(bool(receipt.reasons)))
        self.put("promptmill_written_bytes_total", receipt.part_bytes, files="parts")
        self._count_alive()
        self.put("promptmill_generator_busy_seconds_total", receipt.rendering_s)
        self._progress(receipt.candidates)

    def shard(self, record: CommitRecord) -> None:
        self.put("promptmill_shards_total", 1)
        self.put("promptmill_images_total", record.kept)
        for file in record.files:
            self.put("promptmill_written_bytes_total", file.size, files=file.path.partition("/")[0])

    def stopping(self, units: int) -> None: ...

    def watched(self, pool: Pool, role: PoolName) -> Pool:
        """Return the same pool, with its actors and their calls counted."""
        self.guard(self.show, "promptmill_actors_wanted", pool.size, pool=role)
        self.guard(self.alive, role, 0)

        async def start() -> Actor:
            try:
                return Watched(await pool.start(), self, role)
            except DiedError:
                self.guard(self.put, "promptmill_actor_deaths_total", 1, pool=role)
                raise

        def grown(size: int) -> None:
            self.guard(self.show, "promptmill_actors_wanted", size, pool=role)
            pool.grown(size)

        return replace(pool, start=start, grown=grown)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Set the gauges meanwhile, and once more at the end; needs a running event loop."""

        async def again() -> None:
            while True:
                await asyncio.sleep(SHOWN_S)
                self.guard(self._set_gauges)

        task = asyncio.get_running_loop().create_task(again())
        try:
            yield
        finally:
            task.cancel()
            self.guard(self._set_gauges)

    def put(self, name: str, value: float, **labels: str) -> None:
        """Add a number to a counter."""
        # Guarded one by one, so that a metric that cannot be recorded takes no other one with it.
        self.guard(self._put, name, value, {"dataset": self._dataset, **labels})

    def show(self, name: str, value: float, pool: str | None = None) -> None:
        """Set a gauge to a value, from the next time that the gauges are set."""
        self._gauges[name, pool] = value

    def alive(self, role: PoolName, more: int) -> None:
        """Count an actor that came up, or went."""
        self._count_alive()
        self._alive[role] += more
        self.show("promptmill_actors_alive", self._alive[role], pool=role)

    def begun(self, role: PoolName, unit: Any, alone: bool) -> None:
        """Count a call of an actor that begins."""
        if role == "scorers":
            self._wait(-1)
        elif alone or unit.name in self._again:
            self._again.discard(unit.name)
            self.put("promptmill_units_recomputed_total", 1)
        self._fly(role, 1)

    def ended(self, role: PoolName) -> None:
        """Count a call of an actor that ends, well or not."""
        self._fly(role, -1)

    def made(self, role: PoolName) -> None:
        """Count a call of an actor that ended well."""
        if role == "generators":
            self._wait(1)

    def failed(self, role: PoolName, unit: Any, reason: str) -> None:
        """Count a call of an actor that did not end well."""
        self._again.add(unit.name)
        self.put("promptmill_tries_failed_total", 1, pool=role, reason=reason)

    def _set_gauges(self) -> None:
        for (name, pool), value in self._gauges.items():
            self.put(name, value, **({"pool": pool} if pool else {}))

    def _wait(self, more: int) -> None:
        self._waiting += more
        self.show("promptmill_units_waiting", self._waiting)

    def _fly(self, role: PoolName, more: int) -> None:
        self._in_flight[role] += more
        self.show("promptmill_units_in_flight", self._in_flight[role], pool=role)

    def _progress(self, candidates: int) -> None:
        self._settled += candidates
        self.show("promptmill_candidates_settled", self._settled)

    def _count_alive(self) -> None:
        """Count the seconds that actors were alive, with each unit, as busy seconds are: so their quotient is a share."""
        now = time.monotonic()
        self.put("promptmill_generator_alive_seconds_total", (now - self._seen) * self._alive["generators"])
        self._seen = now


class Watched:
    """Counts the calls and the end of an actor; an error in counting reaches neither the lane nor the actor."""

    def __init__(self, actor: Actor, told: Metrics, role: PoolName):
        self._actor, self._told, self._role = actor, told, role
        self._tell = told.guard
        self._died = False
        self._cut_off: list[Any] = []  # units of calls that were cancelled: past their deadline if the actor is ended then
        self._tell(told.alive, role, 1)

    async def call(self, *work: Any) -> Any:
        unit, alone = work[0], work[-1]
        self._tell(self._told.begun, self._role, unit, alone)
        try:
            made = await self._actor.call(*work)
        except asyncio.CancelledError:
            self._cut_off.append(unit)
            raise
        except (StartError, AbortError):
            raise
        except Exception as error:
            self._died |= isinstance(error, DiedError)
            self._tell(self._told.failed, self._role, unit, _reason(error))
            raise
        finally:
            self._tell(self._told.ended, self._role)
        self._tell(self._told.made, self._role)
        return made

    def kill(self) -> None:
        for unit in self._cut_off:
            self._tell(self._told.failed, self._role, unit, "deadline")
        if self._died or self._cut_off:
            self._tell(self._told.put, "promptmill_actor_deaths_total", 1, pool=self._role)
        self._tell(self._told.alive, self._role, -1)
        self._actor.kill()


def _reason(error: Exception) -> str:
    """Return why a try failed: one of six words, with `deadline`."""
    if isinstance(error, LostError):
        return "lost"
    if not isinstance(error, DiedError):
        return "error"
    if error.by_infrastructure:
        return "node"
    return "out_of_memory" if isinstance(error, MemoryRanOutError) else "died"
