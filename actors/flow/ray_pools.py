"""Makes the pools of Ray actors that lanes call, and tells the death of an actor from an error in its work."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import exceptions

from promptmill.actors.assembler import assemble_shard, join_unit
from promptmill.actors.flow.actor_slots import (
    HANDS,
    AbortError,
    DiedError,
    LostError,
    MemoryRanOutError,
    Pool,
    StartError,
    StepBackError,
    UnfitError,
)
from promptmill.actors.flow.lanes import Again
from promptmill.actors.flow.placement import Room, Seat
from promptmill.actors.flow.workers import Loaded, Workers
from promptmill.actors.generator import Generator
from promptmill.actors.local_ray.memory_limits import MEMORY, REMEDY, KernelKills, memory_limit
from promptmill.actors.local_ray.watch import ended_for_memory
from promptmill.actors.pool_sizes import Sizes
from promptmill.actors.scorer import Scorer
from promptmill.configs.schema import Elastic
from promptmill.pipelines.scoring.finishing import Onward
from promptmill.pipelines.work.errors import FatalError, MisfitError, ModelError
from promptmill.pipelines.work.passes import Course
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.units import Unit
from promptmill.shards.parts import PartError
from promptmill.shards.storage import StorageError

STEP_BACK_S = 60.0
NODE_GONE_S = 1.0


def ray_workers(recipe: Recipe, sizes: Sizes, generator_loaded: Loaded, scorer_loaded: Loaded) -> Workers:
    """Return the workers of a run on the Ray cluster that this process is connected to.

    Args:
        recipe: The constants of the run.
        sizes: The sizes of the pools.
        generator_loaded, scorer_loaded: As `generators` has them.
    """
    # Fixed pools have room for all of them; where they may grow, so do these.
    most, elastic = max(sizes.scorers, sizes.most_scorers), isinstance(recipe.config.runtime.generators, Elastic)
    all_of_them = sizes.generators if most > sizes.scorers and not elastic else 0
    room = Room(feeding=sizes.generators // most, placed_first=all_of_them)
    spread = ray.remote(max_retries=3, scheduling_strategy="SPREAD", num_cpus=sizes.task_cpus)
    assembling, joining = spread(assemble_shard), spread(join_unit)
    return Workers(
        generators(recipe, sizes, room, generator_loaded),
        scorers(recipe, sizes, room, scorer_loaded),
        assembling.remote,
        joining.remote,
    )


def _generator(kind: Any) -> Any:
    """Return Ray's actor class of a kind of generator. Processes are titled by its name: ray::Generator."""

    class OnRay(kind):
        @ray.method(num_returns=2)
        def render(self, unit: Unit) -> tuple[None, Any]:
            """Render a unit, with two results: the first says that all is done, the second stays on its node for a scorer."""
            return None, super().render(unit)

    return _remote(OnRay, kind)


def _scorer(kind: Any) -> Any:
    """Return Ray's actor class of a kind of scorer, whose `finish` has two results.

    The results are the receipt and None; or, for a unit that has to pass again, the course that it goes on with, and the results of
    this pass for the unit's end, which stay on their node. `earlier` are references to the second results of earlier passes: they
    are fetched at the unit's end only.
    """

    class OnRay(kind):
        @ray.method(num_returns=2)
        def finish(self, unit: Unit, rendered: Any, earlier: Sequence[Any] = ()) -> tuple[Any, Any]:
            said = super().finish(unit, rendered, lambda: ray.get([*earlier]))
            return (said.course, said.waiting) if isinstance(said, Onward) else (said, None)

    return _remote(OnRay, kind)


def _remote(made: type, kind: type) -> Any:
    made.__name__, made.__qualname__ = kind.__name__, kind.__name__
    return ray.remote(max_restarts=0)(made)


class RayActor:
    """Wraps one Ray actor for a lane.

    Args:
        handle: Ray's handle.
        call: Does the actor's work.
        seat: The actor's place; an actor that was dismissed from it has died for no fault of the units in flight on it.
        gone: Called when the lane gives the actor up.
        kills: Tells whether the kernel has ended a process for its memory; None where actors are on other machines.
    """

    def __init__(
        self,
        handle: Any,
        call: Callable[..., Awaitable[Any]],
        seat: Seat | None = None,
        gone: Callable[[], object] = lambda: None,
        kills: KernelKills | None = None,
    ):
        self.handle, self._call, self._seat, self._gone, self._kills = handle, call, seat, gone, kills

    async def call(self, *work: Any) -> Any:
        try:
            return await self._call(self.handle, *work)
        except exceptions.ObjectLostError as error:
            raise LostError(_reason(error)) from None
        except exceptions.OutOfMemoryError as error:
            raise MemoryRanOutError(ended_for_memory(error)) from None
        except (exceptions.RayActorError, exceptions.WorkerCrashedError) as error:
            raise _died(error, self._dismissed, self._kills) from None
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, exceptions.ObjectLostError):
                raise LostError(_reason(cause)) from None
            if isinstance(cause, exceptions.OutOfMemoryError):
                raise MemoryRanOutError(ended_for_memory(cause)) from None
            if isinstance(cause, FatalError):
                # The process lives, but must not go on: its lane replaces the actor as if it had died.
                raise (UnfitError if isinstance(cause, MisfitError) else DiedError)(_reason(cause)) from None
            if isinstance(cause, StorageError | PartError):
                raise AbortError(str(cause)) from None  # the unit is not at fault: the next one would fail too
            raise cause from None

    def kill(self) -> None:
        ray.kill(self.handle)
        self._gone()

    @property
    def _dismissed(self) -> bool:
        return self._seat is not None and self._seat.dismissed


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__


def _died(error: Exception, dismissed: bool, kills: KernelKills | None) -> DiedError:
    """Return the error of a process that has ended: by its node, by the kernel since memory ran out, or by itself."""
    by_infrastructure = dismissed or _by_infrastructure(error)
    if not by_infrastructure and kills is not None and kills.recent():
        return MemoryRanOutError(f"{MEMORY}: the kernel has ended a process of this run (limit {memory_limit().text}); {REMEDY}")
    return DiedError(_reason(error), by_infrastructure=by_infrastructure)


def _by_infrastructure(error: Exception) -> bool:
    """Return whether a node went, rather than the process by itself; an actor that waits at a node is cancelled with the node."""
    said = str(error)
    gone = isinstance(error, exceptions.NodeDiedError) or "its node has died" in said or "The actor never ran" in said
    return gone or bool(getattr(error, "preempted", False))


async def _render(handle: Any, unit: Any, alone: bool) -> Any:
    done, rendered = handle.render.remote(unit)
    await done
    return rendered  # a reference; the images stay where they are until a scorer takes them


async def _finish(handle: Any, unit: Unit, rendered: Any, earlier: tuple[Any, ...], alone: bool) -> Any:
    # In a list, so that Ray hands on the references themselves: they are needed at the unit's end only.
    answer, waiting = handle.finish.remote(unit, rendered, [*earlier])
    said = await answer
    if isinstance(said, Course):
        # Of drafts nothing is needed any more but their scores; what is in full waits for the unit's end, unless a part has it.
        in_full = unit.course is not None and unit.course.in_full
        waits = in_full and said.durable is None and said.staged is None
        return Again(replace(unit, course=said), waiting if waits else None)
    return said


async def _load(handle: Any, loaded: Callable[[Any], None], seat: Seat | None = None, kills: KernelKills | None = None) -> None:
    """Load an actor's models, and tell `loaded` the actor's kind of hardware.

    Raises:
        StartError: The model cannot be loaded, here as anywhere.
        AbortError: The output cannot be reached.
        DiedError: The process has died.
    """
    try:
        loaded(await handle.load.remote())
    except exceptions.RayError as error:
        cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
        if isinstance(cause, ModelError):
            raise StartError(str(cause)) from None
        if isinstance(cause, StorageError):
            raise AbortError(str(cause)) from None
        dismissed = seat is not None and seat.dismissed
        if isinstance(error, exceptions.OutOfMemoryError):
            raise MemoryRanOutError(ended_for_memory(error)) from None
        if cause is error:
            raise _died(error, dismissed, kills) from None
        raise DiedError(_reason(cause or error), by_infrastructure=dismissed or _by_infrastructure(error)) from None


def _placed(handle: Any) -> "asyncio.Future[None]":
    """Return a future that is done once an actor has its place, or never gets one; the next call of the actor tells which."""
    placed = asyncio.ensure_future(handle.__ray_ready__.remote())
    placed.add_done_callback(lambda done: done.cancelled() or done.exception())
    return placed


def _kills_here(recipe: Recipe) -> KernelKills | None:
    return KernelKills() if recipe.config.runtime.address in (None, "", "local") else None


async def _wherever(start: Callable[[], Awaitable[RayActor]]) -> RayActor:
    """Return an actor that is up; an actor whose node went before does not count as one that fails to start."""
    while True:
        try:
            return await start()
        except StepBackError:
            # By then a node of the right kind may have room.
            await asyncio.sleep(STEP_BACK_S)
        except DiedError as error:
            if not error.by_infrastructure:
                raise
            await asyncio.sleep(NODE_GONE_S)


def generators(recipe: Recipe, sizes: Sizes, room: Room, loaded: Loaded) -> Pool:
    """Return the pool of generators; `loaded` is told the kind of hardware of each as it comes up, and may refuse it.

    Where `loaded` raises StepBackError, the actor goes and its lane waits; any other error of `loaded` ends the run.
    """
    config = recipe.config
    kills = _kills_here(recipe)
    options = {"num_cpus": sizes.generator_cpus, "num_gpus": sizes.generator_gpus, "max_concurrency": HANDS}
    kind = _generator(Generator)

    async def start() -> RayActor:
        await room.before_generator()
        handle = kind.options(**options).remote(recipe)
        seat = Seat(lambda: ray.kill(handle))
        room.generator_waits(seat)
        try:
            await asyncio.wait({_placed(handle)})
            room.generator_placed(seat)
            await _load(handle, loaded, seat, kills)
        except BaseException:
            # Also when cancelled while the actor waited: nobody would ever use it.
            ray.kill(handle)
            room.generator_gone(seat)
            raise
        room.generator_up(seat)
        return RayActor(handle, _render, seat, lambda: room.generator_gone(seat), kills)

    return Pool(lambda: _wherever(start), sizes.generators, HANDS, config.runtime.unit_deadline_s)


def scorers(recipe: Recipe, sizes: Sizes, room: Room, loaded: Loaded) -> Pool:
    """Return the pool of scorers; `loaded` as for generators."""
    options = {"num_cpus": sizes.scorer_cpus, "num_gpus": sizes.scorer_gpus}
    deadline = recipe.config.runtime.unit_deadline_s
    kills = _kills_here(recipe)
    kind = _scorer(Scorer)

    async def start() -> RayActor:
        await room.before_scorer()
        had_place, handle = False, None
        try:
            handle = kind.options(**options).remote(recipe, sizes.served)
            await room.scorer_waits(_placed(handle))
            had_place = True
            await _load(handle, loaded, kills=kills)
        except BaseException:
            if handle is not None:
                ray.kill(handle)
            room.scorer_gone(had_place)
            raise
        return RayActor(handle, _finish, gone=lambda: room.scorer_gone(True), kills=kills)

    return Pool(lambda: _wherever(start), sizes.scorers, 1, deadline, sizes.most_scorers)
