"""The place of one actor: starts it, replaces it when it dies, gives out turns on it, and cuts off what takes too long.

Knows nothing of Ray; what starts an actor is a callable.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

HANDS = 2  # units in flight on a generator, so that it never waits for the driver
PATIENCE = 3  # times a unit may die alone, and times in a row an actor may fail to start


class DiedError(Exception):
    """The process behind an actor is gone. `by_infrastructure`: its node went, so no unit is to blame."""

    def __init__(self, reason: str, by_infrastructure: bool = False):
        self.by_infrastructure = by_infrastructure
        super().__init__(reason)


class DeadlineError(DiedError):
    """The process was ended, since a call on it took longer than it may."""


class MemoryRanOutError(DiedError):
    """The process is gone since memory ran out."""


class UnfitError(MemoryRanOutError):
    """The unit does not fit into memory, in pieces neither; it has one more try, in a fresh process."""


class LostError(Exception):
    """What a generator made is not there any more (the node that held it died): it has to be made again."""


class GoneError(Exception):
    """The actor died before the turn came. Another may never come, so that whoever has the turn must not wait for it with work."""


class StepBackError(Exception):
    """A generator that came up where it is of no use, beside others that are: its lane tries again later."""


class StartError(Exception):
    """Actors fail to start, several in a row or for a reason that stays: the run ends with it."""


class AbortError(Exception):
    """What is wrong is no fact about a unit (the output cannot be written, say): the run ends with it."""


class Actor(Protocol):
    """A process that does one kind of work."""

    async def call(self, *work: Any) -> Any:
        """Do the work; raises DiedError, LostError, or whatever is wrong with this piece of work."""

    def kill(self) -> None:
        """End the process at once; calls in flight may raise DiedError or never return."""


@dataclass(frozen=True)
class Pool:
    """How many actors of a kind, how to start one (ready when that returns), and how many calls each takes at a time.

    `start` raises StartError where another try would fail too. The deadline counts once for each call in flight on the actor.
    """

    start: Callable[[], Awaitable[Actor]]
    size: int
    hands: int = 1
    deadline_s: float = 1800.0


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
                raise  # it would fail again
            except Exception as error:
                self.failures += 1
                if self.failures >= PATIENCE:
                    raise StartError(str(error)) from error


class Place:
    """One actor's place: starts it, replaces it, and sees to it that a unit that is to be alone is."""

    def __init__(self, starts: Starts):
        self._starts = starts
        self._actor: Actor | None = None
        self._starting = asyncio.Lock()
        self._busy, self._exclusive = 0, asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open_hands = starts.pool.hands

    @asynccontextmanager
    async def turn(self, alone: bool) -> AsyncIterator[Actor]:
        """The living actor, shared with the other hands or, `alone`, with none.

        Raises:
            GoneError: It is alive no more.
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
        """The living actor, started where there is none."""
        async with self._starting:
            if self._actor is None:
                self._actor = await self._starts.start()
            return self._actor

    async def call(self, actor: Actor, *work: Any) -> Any:
        """One call within the deadline. Whoever finds the actor dead, or makes it so, has the lane replace it."""
        try:
            async with asyncio.timeout(self._starts.pool.deadline_s * self._busy):
                return await actor.call(*work)
        except TimeoutError:
            self._drop(actor)
            raise DeadlineError(f"past its deadline of {self._starts.pool.deadline_s:g} s") from None
        except DiedError:
            self._drop(actor)
            raise

    def _drop(self, actor: Actor) -> None:
        if self._actor is actor:
            self._actor = None
            actor.kill()

    def close(self) -> None:
        """A hand has finished; with the last one the actor goes."""
        self._open_hands -= 1
        if self._open_hands == 0 and self._actor is not None:
            self._actor.kill()
            self._actor = None
