"""Makes the pools of workers that live in this process, with one generator and one scorer, each called from threads; without Ray.

A thread cannot be killed. So an event that ends one worker's process under Ray ends the run here, or waits: a unit that kills its
process kills the run, which resumes; a unit past its deadline ends the run with one line; a worker that is given up ends after its
step.
"""

import asyncio
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from promptmill.actors.assembler import assemble_shard, join_unit
from promptmill.actors.flow.actor_slots import HANDS, AbortError, Pool, StartError, UnfitError
from promptmill.actors.flow.lanes import Again
from promptmill.actors.flow.workers import Loaded, Workers
from promptmill.actors.generator import Generator
from promptmill.actors.pool_sizes import Sizes
from promptmill.actors.receipts import Receipt
from promptmill.actors.scorer import Scorer
from promptmill.pipelines.work.errors import FatalError, MisfitError, ModelError
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Unit
from promptmill.shards.assembly import Assembly
from promptmill.shards.commits import CommitRecord
from promptmill.shards.parts import PartError
from promptmill.shards.storage import StorageError

GOES_ON = "what is done is durable, and the same command goes on"


def sizes_here(threads: int) -> Sizes:
    """Return the pools' sizes: one generator, one scorer."""
    return Sizes(1, float(threads), 0.0, 1, 0.0, 0.0, 0.0)


def still_at_work(patience_s: float = 0.0) -> bool:
    """Return whether a thread of a worker is inside a call.

    A process that ends meanwhile, other than at once, may be aborted by torch.

    Args:
        patience_s: Seconds to wait for the threads to come out of their calls.
    """
    until = time.monotonic() + patience_s
    while busy := any(threads.busy for threads in tuple(_ALL)):
        if time.monotonic() >= until:
            break
        time.sleep(0.01)
    return busy


class Threads:
    """Runs calls in threads of its own, which end with the process and hold up no exit.

    Args:
        name: The threads' name.
        number: Calls at a time; further calls wait.
    """

    def __init__(self, name: str, number: int = 1):
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock, self._number, self._open = threading.Lock(), number, 0
        for _ in range(number):
            threading.Thread(target=self._work, name=name, daemon=True).start()
        _ALL.add(self)

    @property
    def busy(self) -> bool:
        """Return whether a call is under way or waits."""
        return self._open > 0

    def submit(self, call: Callable[[], Any]) -> "Future[Any]":
        done: Future[Any] = Future()
        with self._lock:
            self._open += 1
        self._calls.put((done, call))
        return done

    async def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Await a call of `work` in one of the threads. Cancelled, a call that has begun goes on, and its result is dropped."""
        return await asyncio.wrap_future(self.submit(lambda: work(*arguments)))

    def close(self) -> None:
        """End the threads once the calls that were given before have ended."""
        for _ in range(self._number):
            self._calls.put(None)

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            done, call = given
            try:
                if done.set_running_or_notify_cancel():
                    _run(done, call)
            finally:
                with self._lock:
                    self._open -= 1
            del given, done, call  # lest an idle thread hold the latest unit's images


_ALL: "weakref.WeakSet[Threads]" = weakref.WeakSet()


def _run(done: "Future[Any]", call: Callable[[], Any]) -> None:
    try:
        made = call()
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(made)


class WorkerHere:
    """Wraps one worker of this process as an actor for a lane.

    Args:
        threads: Run the worker's calls.
        work: Called with the lane's arguments.
        end: Called in one of the threads once the lane gives the worker up.
        deadline_s: A unit's deadline in seconds; counts once for each call under way.
    """

    def __init__(self, threads: Threads, work: Callable[..., Any], end: Callable[[], object], deadline_s: float):
        self._threads, self._work, self._end, self._deadline_s = threads, work, end, deadline_s
        self._under_way = 0
        self._ended = False

    async def call(self, *work: Any) -> Any:
        self._under_way += 1
        try:
            async with asyncio.timeout(self._deadline_s * self._under_way) as limit:
                return await self._threads.call(self._work, *work)
        except TimeoutError:
            if not limit.expired():
                raise
            raise AbortError(
                f"unit {work[0].name} is not done within runtime.unit_deadline_s, {self._deadline_s:g} s, and a thread cannot be"
                f" ended by itself; {GOES_ON}; runtime.workers=ray fails such a unit and renders the others"
            ) from None
        except FatalError as error:
            if isinstance(error, MisfitError):
                raise UnfitError(str(error)) from None
            raise AbortError(f"this process cannot go on: {error}; {GOES_ON}") from None
        except (StorageError, PartError) as error:
            raise AbortError(str(error)) from None  # the unit is not at fault: the next one would fail too
        finally:
            self._under_way -= 1

    def kill(self) -> None:
        if not self._ended:
            self._ended = True
            self._threads.submit(self._end)
            self._threads.close()


async def _load(threads: Threads, worker: Any, loaded: Loaded, turn: asyncio.Lock, require_gpus: bool) -> None:
    """Load a worker's models in its thread, and tell `loaded` the kind of hardware.

    Raises:
        StartError: The model cannot be loaded, or a GPU is required and there is none.
        AbortError: The output cannot be reached.
    """
    try:
        # One after another: libraries that two threads import at once may find each other half imported.
        async with turn:
            await threads.call(_import_models)
            kind = await threads.call(worker.load)
    except ModelError as error:
        raise StartError(str(error)) from None
    except StorageError as error:
        raise AbortError(str(error)) from None
    if require_gpus and "gpu" not in kind:
        raise StartError("torch sees no GPU in this process, and runtime.require_gpus is set")
    loaded(kind)


def _import_models() -> None:
    """Import the modules that all workers load with, before one of them begins to compute."""
    import promptmill.pipelines.rendering.engine
    import promptmill.pipelines.scoring.scorers  # noqa: F401


def workers_here(recipe: Recipe, generator_loaded: Loaded, scorer_loaded: Loaded) -> Workers:
    """Return the workers of a run in this process: one generator, one scorer, one thread that assembles."""
    deadline_s, gpus = recipe.config.runtime.unit_deadline_s, recipe.config.runtime.require_gpus
    turn, started, assembling = asyncio.Lock(), list[WorkerHere](), Threads("assembler")

    async def start_generator() -> WorkerHere:
        threads, generator = Threads("generator", HANDS), Generator(recipe)
        try:
            await _load(threads, generator, generator_loaded, turn, gpus)
        except BaseException:
            threads.close()
            raise
        started.append(here := WorkerHere(threads, lambda unit, alone: generator.render(unit), generator.close, deadline_s))
        return here

    async def start_scorer() -> WorkerHere:
        threads, scorer = Threads("scorer"), Scorer(recipe)
        try:
            await _load(threads, scorer, scorer_loaded, turn, gpus)
        except BaseException:
            threads.close()
            raise

        def finish(unit: Unit, rendered: Any, earlier: Sequence[Any], alone: bool) -> Receipt | Again[Unit]:
            return finished(scorer, unit, rendered, earlier)

        started.append(here := WorkerHere(threads, finish, lambda: None, deadline_s))
        return here

    async def assemble(recipe: Recipe, made_of: Assembly) -> CommitRecord:
        record: CommitRecord = await assembling.call(assemble_shard, recipe, made_of)
        return record

    async def join(*arguments: Any) -> Receipt:
        return await assembling.call(join_unit, *arguments)

    def close() -> None:
        for worker in started:
            worker.kill()
        assembling.close()

    # Deadlines are counted by the workers: a lane would begin another worker beside a thread that still computes.
    never = float("inf")
    return Workers(Pool(start_generator, 1, HANDS, never), Pool(start_scorer, 1, 1, never), assemble, join, close)


def finished(scorer: Any, unit: Unit, rendered: Any, earlier: Sequence[Any]) -> Receipt | Again[Unit]:
    """Finish a unit's latest pass by a scorer, and return the answer for its lane."""
    said = scorer.finish(unit, rendered, lambda: earlier)
    if isinstance(said, Receipt):
        return said
    in_full = unit.course is not None and unit.course.in_full
    return Again(replace(unit, course=said.course), said.waiting if in_full else None)
