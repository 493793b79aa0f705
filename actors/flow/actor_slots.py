"""Holds the slot of one actor: starts the actor, replaces it when it dies, shares it between hands, and cuts off late calls.

The module knows nothing of Ray; a callable starts an actor.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

HANDS = 2  # units in flight on a generator, so that it never waits for the driver
PATIENCE = 3  # times a unit may die alone, and times in a row an actor may fail to start


class DiedError(Exception):
    """Reports the death of the process behind an actor. `by_infrastructure`: the process's node went, so no unit is to blame."""

    def __init__(self, reason: str, by_infrastructure: bool = False):
        self.by_infrastructure = by_infrastructure
        super().__init__(reason)


class DeadlineError(DiedError):
    """Reports a process that was ended, since a call on it took longer than it may."""


class MemoryRanOutError(DiedError):
    """Reports a process that is gone since memory ran out."""


class UnfitError(MemoryRanOutError):
    """Reports a unit that does not fit into memory, in pieces neither; the unit has one more try, in a fresh process."""


class LostError(Exception):
    """Reports a generator's result that is gone (the node that held it died) and has to be made again."""


class GoneError(Exception):
    """Reports an actor that died before the turn came.

    Another actor may never come, so a hand must not wait for one while it holds work.
    """


class StepBackError(Exception):
    """Reports a generator that came up where it is of no use, beside others that are of use: its lane tries again later."""


class StartError(Exception):
    """Reports actors that fail to start, several in a row or for a reason that stays: the run ends."""


class AbortError(Exception):
    """Reports a fault that is none of a unit's (an output that cannot be written, for example): the run ends."""


class Actor(Protocol):
    """Defines a process that does one kind of work."""

    async def call(self, *work: Any) -> Any:
        """Do the work; raise DiedError, LostError, or the error of this piece of work."""

    def kill(self) -> None:
        """End the process at once; calls in flight may raise DiedError or never return."""


@dataclass(frozen=True)
class Pool:
    """Holds the number of actors of a kind, a function that starts one (ready when it returns), and the calls each takes at a time.

    `start` raises StartError where another try would fail too. The deadline counts once for each call in flight on the actor.

    Attributes:
        most: To how many actors the pool of scorers may grow; the pool stays as it is where this is not above its size.
        grown: Told the pool's new size as it grows.
    """

    start: Callable[[], Awaitable[Actor]]
    size: int
    hands: int = 1
    deadline_s: float = 1800.0
    most: int = 0
    grown: Callable[[int], object] = lambda size: None


class Starts:
    """Starts the actors of one pool, and gives up when several in a row fail."""

    def __init__(self, pool: Pool):
        self.pool, self.failures = pool, 0

    async def start(self) -> Actor:
        while True:
            try:
                actor, self.failures = await self.pool.start(), 0
                return actor
            except (StartError, AbortError):
                raise  # another try would fail too
            except Exception as error:
                self.failures += 1
                if self.failures >= PATIENCE:
                    raise StartError(str(error)) from error


class Place:
    """Holds the slot of one actor: starts and replaces the actor, and leaves a unit alone on it where the unit has to be alone.

    Args:
        starts: Starts the actor.
        spare: Whether the actor comes beside those that the run began with, so that the run goes on without it.
    """

    def __init__(self, starts: Starts, spare: bool = False):
        self._starts, self.spare = starts, spare
        self._actor: Actor | None = None
        self._starting = asyncio.Lock()
        self._busy, self._exclusive = 0, asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open_hands = starts.pool.hands
        self._calls, self._since, self._worked_s = 0, 0.0, 0.0

    @property
    def is_up(self) -> bool:
        """Return whether there is a living actor."""
        return self._actor is not None

    @asynccontextmanager
    async def turn(self, alone: bool) -> AsyncIterator[Actor]:
        """Yield the living actor, shared with the other hands or, `alone`, with none.

        Raises:
            GoneError: The actor is alive no more.
        """
        async with AsyncExitStack() as kept:
            await kept.enter_async_context(self._exclusive)
            if alone:
                await self._idle.wait()
            else:
                # Only the way in is one by one; once in, the hands share the actor.
                await kept.pop_all().aclose()
            self._busy += 1
            self._idle.clear()
            try:
                if self._actor is None:
                    raise GoneError
                yield self._actor
            finally:
                self._busy -= 1
                if self._busy == 0:
                    self._idle.set()

    async def up(self) -> Actor:
        """Return the living actor, started where there is none."""
        async with self._starting:
            if self._actor is None:
                self._actor = await self._starts.start()
            return self._actor

    async def call(self, actor: Actor, *work: Any) -> Any:
        """Call an actor within the deadline. A hand that finds the actor dead, or ends it, has the lane replace it."""
        self._count(1)
        try:
            async with asyncio.timeout(self._starts.pool.deadline_s * self._busy):
                return await actor.call(*work)
        except TimeoutError:
            self._drop(actor)
            raise DeadlineError(f"past its deadline of {self._starts.pool.deadline_s:g} s") from None
        except DiedError:
            self._drop(actor)
            raise
        finally:
            self._count(-1)

    def worked_s(self) -> float:
        """Return the seconds in which calls were under way since this was asked last; calls side by side count once."""
        self._count(0)
        worked_s, self._worked_s = self._worked_s, 0.0
        return worked_s

    def _count(self, calls: int) -> None:
        now = asyncio.get_running_loop().time()
        self._worked_s += (now - self._since) * bool(self._calls)
        self._calls, self._since = self._calls + calls, now

    def _drop(self, actor: Actor) -> None:
        if self._actor is actor:
            self._actor = None
            actor.kill()

    def close(self) -> None:
        """Close one hand; the last one ends the actor."""
        self._open_hands -= 1
        if self._open_hands == 0 and self._actor is not None:
            self._actor.kill()
            self._actor = None
