"""Decides who may take a place on the cluster, and when: without a scorer nothing goes on, so generators must not take all places.

One scorer comes first, then the generators, then further scorers as there are generators enough to feed them, or as units wait for
scorers. Where the last scorer
is gone, generators that wait for a place leave the queue; where the scorer fits nowhere again, a generator that has its place gives
way.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

PATIENCE_S = 30.0  # a scorer's wait for its place before a generator gives up its own


@dataclass(eq=False)
class Seat:
    """Holds an actor that waits for its place, or has it.

    Attributes:
        kill: Ends the actor, wherever it is.
        dismissed: Whether the actor was ended for a scorer's sake, which is no fault of the units in flight on it.
    """

    kill: Callable[[], None]
    dismissed: bool = False

    def dismiss(self) -> None:
        self.dismissed = True
        self.kill()


class Room:
    """Holds the places of one run.

    Args:
        feeding: Generators that have to be up for each scorer beyond the first.
        placed_first: Generators that a scorer beyond the first waits for, `patience_s` at most, lest it take the place of one.
        patience_s: As PATIENCE_S.
    """

    def __init__(self, feeding: int, patience_s: float = PATIENCE_S, placed_first: int = 0):
        self._feeding, self._patience_s, self._placed_first = feeding, patience_s, placed_first
        self._first, self._changed = asyncio.Event(), asyncio.Event()
        self._asked = self._scorers = 0  # scorers that wait or have their place; that have it
        self._waiting: set[Seat] = set()  # generators
        self._up: dict[Seat, None] = {}  # likewise, the last one last

    async def before_generator(self) -> None:
        """Wait until there is a scorer."""
        await self._first.wait()

    def generator_waits(self, seat: Seat) -> None:
        self._waiting.add(seat)

    def generator_placed(self, seat: Seat) -> None:
        self._waiting.discard(seat)

    def generator_up(self, seat: Seat) -> None:
        self._up[seat] = None
        self._changed.set()

    def generator_gone(self, seat: Seat) -> None:
        """Record the end of a generator that has died or whose lane has ended; a second call changes nothing."""
        self._waiting.discard(seat)
        self._up.pop(seat, None)

    async def before_scorer(self) -> None:
        """Wait until one more scorer is wanted; the scorer counts as asked for until `scorer_gone`."""
        while len(self._up) < self._feeding * self._asked:
            self._changed.clear()
            await self._changed.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience_s):
                # A generator that is not up by then had a node that has gone, and its lane may wait for ever.
                while self._asked and len(self._up) < self._placed_first:
                    self._changed.clear()
                    await self._changed.wait()
        self._asked += 1

    async def scorer_waits(self, placed: "asyncio.Future[None]") -> None:
        """Wait until Ray schedules this scorer. While no scorer runs, dismiss the newest generator every `patience_s` to make
        room.
        """
        while not (await asyncio.wait({placed}, timeout=self._patience_s))[0]:
            if self._scorers == 0 and self._up:
                seat, _ = self._up.popitem()
                seat.dismiss()
        self._scorers += 1
        self._first.set()

    def scorer_gone(self, had_place: bool) -> None:
        """Record the end of a scorer that has died, whose lane has ended, or that was given up while it waited."""
        self._asked -= 1
        self._scorers -= had_place
        if self._scorers == 0:
            self._first.clear()
            for seat in tuple(self._waiting):
                seat.dismiss()
        self._changed.set()
