"""Who may take a place on the cluster, and when: generators must not take all there is, since without a scorer nothing goes on.

One scorer comes first, then the generators, then further scorers as there are generators enough to feed them. Where the last scorer
is gone, generators that wait for a place leave the queue; where it fits nowhere again, one that has its place gives way.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

PATIENCE_S = 30.0  # that a scorer waits for its place before a generator gives up its own


@dataclass(eq=False)
class Seat:
    """An actor that waits for its place, or has it.

    Attributes:
        kill: Ends it, wherever it is.
        dismissed: It was ended for a scorer's sake, which is no fault of what was in flight on it.
    """

    kill: Callable[[], None]
    dismissed: bool = False

    def dismiss(self) -> None:
        self.dismissed = True
        self.kill()


class Room:
    """The places of one run.

    Args:
        feeding: Generators that have to be up for each scorer beyond the first.
        patience_s: As PATIENCE_S.
    """

    def __init__(self, feeding: int, patience_s: float = PATIENCE_S):
        self._feeding, self._patience_s = feeding, patience_s
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
        """It has died, or its lane has ended; once it is gone, this says nothing new."""
        self._waiting.discard(seat)
        self._up.pop(seat, None)

    async def before_scorer(self) -> None:
        """Wait until one more is wanted; it counts as asked for until `scorer_gone`."""
        while len(self._up) < self._feeding * self._asked:
            self._changed.clear()
            await self._changed.wait()
        self._asked += 1

    async def scorer_waits(self, placed: "asyncio.Future[None]") -> None:
        """Wait until it has its place; where it is the only one it gets one."""
        while not (await asyncio.wait({placed}, timeout=self._patience_s))[0]:
            if self._scorers == 0 and self._up:
                seat, _ = self._up.popitem()
                seat.dismiss()
        self._scorers += 1
        self._first.set()

    def scorer_gone(self, had_place: bool) -> None:
        """It has died, or its lane has ended, or it was given up while it waited."""
        self._asked -= 1
        self._scorers -= had_place
        if self._scorers == 0:
            self._first.clear()
            for seat in tuple(self._waiting):
                seat.dismiss()
        self._changed.set()
