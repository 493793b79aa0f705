"""Which unit goes where: lanes of coroutines between bounded channels. Knows nothing of Ray; it takes callables.

    source ─▶ supply ─▶ generator lanes ─▶ made ─▶ scorer lanes ─▶ receipts
                 ▲─────────────── again ───────────────┘

Every actor has a lane, with as many hands as it takes calls at a time. A hand takes a unit, awaits the actor, hands the result on.
Backpressure is the bounded channels; closing the source is the gentle stop. A dead actor is replaced by its lane, and what was
in flight on it goes back in its smallest pieces: each runs alone on its actor, so that one that kills is told from those beside it.
One that dies alone `PATIENCE` times is convicted, and settled as failed. A piece can run twice (its receipt was lost with its
actor), so what actors do has to be idempotent. Every unit, or each of its pieces, is settled once.

A scorer may send a unit back to the generators, further on than it was. It goes before new units, and there is always room for it:
no scorer ever waits for a generator, so nothing can wait in a circle, and a new unit is drawn only where none has come back, so no
more are under way than there are hands and places in the channels.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from promptmill.actors.flow.actor_slots import (
    PATIENCE,
    AbortError,
    Actor,
    DiedError,
    GoneError,
    LostError,
    Place,
    Pool,
    StartError,
    Starts,
    UnfitError,
)
from promptmill.actors.flow.queues import Channel

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Again(Generic[Unit]):
    """What a scorer returns for a unit that has to pass once more.

    Attributes:
        unit: The unit as it goes on.
        keeps: What of this pass is handed to the unit's scorer at the later ones too; None is nothing.
    """

    unit: Unit
    keeps: Any = None


@dataclass
class Ticket(Generic[Unit]):
    """A unit on its way: as it was drawn and as it stands; what was made of it at this pass, and what its scorers keep of earlier
    ones; what it has been through. `PATIENCE` strikes convict it."""

    drawn: Unit
    unit: Unit
    made: Any = None
    kept: tuple[Any, ...] = ()
    alone: bool = False
    strikes: int = 0
    failures: list[Exception] = field(default_factory=list)


class Lanes(Generic[Unit]):
    """One run of a source of units through generators and scorers.

    Args:
        source: The units, drawn one by one as there is room for them.
        generators: Called with (unit, alone); what they return goes to a scorer as it is.
        scorers: Called with (unit, made, kept, alone); what they return is the receipt, or `Again`.
        convict: Settles a unit that cannot be done: takes it and what its tries failed of, returns its receipt.
        split: The pieces that a unit is tried in once it died; itself alone where it has none.
        waiting: How many made units may wait for a scorer.
    """

    def __init__(
        self,
        source: Iterable[Unit],
        generators: Pool,
        scorers: Pool,
        convict: Callable[[Unit, list[Exception]], Awaitable[Any]],
        split: Callable[[Unit], list[Unit]],
        waiting: int = 4,
    ):
        self._source: Iterator[Unit] | None = iter(source)
        self._generators, self._scorers, self._convict, self._split = generators, scorers, convict, split
        self._again: Channel[Ticket[Unit]] = Channel(1)
        self._made: Channel[Ticket[Unit]] = Channel(waiting)
        self._receipts: Channel[Any] = Channel(waiting)
        self.under_way = 0  # units drawn and not yet settled
        self._finished = asyncio.Event()

    def stop(self) -> None:
        """Draw no more units; what is under way is finished."""
        self._source = None
        self._close_if_done()

    async def run(self) -> AsyncIterator[Any]:
        """The receipts, as units are settled. Leaving early cancels the rest.

        Raises:
            StartError, AbortError: Actors of a pool fail to start, or what they need is not there.
        """
        (work := asyncio.create_task(self._work())).add_done_callback(lambda _: self._receipts.close())
        try:
            while (receipt := await self._receipts.get()) is not None:
                yield receipt
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for pool, take, serve in (
                    (self._generators, self._next_to_make, self._generate),
                    (self._scorers, self._made.get, self._score),
                ):
                    starts = Starts(pool)
                    for _ in range(pool.size):
                        lane = Place(starts)
                        for _ in range(pool.hands):
                            group.create_task(self._hand(lane, take, serve))
                self._close_if_done()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # the others were cancelled for it

    async def _hand(self, lane: Place, take: Callable[[], Awaitable[Ticket | None]], serve: Callable) -> None:
        # The actor first: a lane whose actor never comes holds no work.
        while await self._up(lane) and (ticket := await take()) is not None:
            try:
                async with lane.turn(alone=ticket.alone) as actor:
                    await serve(lane, actor, ticket)
            except GoneError:  # another lane may have one sooner
                self._again.give_back(ticket)
            except LostError as error:
                if ticket.kept:  # which of it is gone nobody knows
                    ticket.unit, ticket.kept = ticket.drawn, ()
                self._return(ticket, error, blame=False)
            except DiedError as error:
                self._return(ticket, error, blame=not error.by_infrastructure)
            except (StartError, AbortError):
                raise
            except Exception as error:  # whatever an actor raises is a fact about this unit, not about the run
                self._return(ticket, error, blame=True)
            if ticket.strikes >= PATIENCE:
                await self._settle(await self._convict(ticket.unit, ticket.failures))
        lane.close()

    async def _up(self, lane: Place) -> bool:
        """Wait for a lane's living actor; False where all work is done before."""
        start, finished = asyncio.ensure_future(lane.up()), asyncio.ensure_future(self._finished.wait())
        try:
            await asyncio.wait((start, finished), return_when=asyncio.FIRST_COMPLETED)
            return start.done() and start.result() is not None
        finally:
            for task in (start, finished):
                task.cancel()

    async def _next_to_make(self) -> Ticket[Unit] | None:
        if not len(self._again) and self._source is not None:
            for unit in self._source:
                self.under_way += 1
                return Ticket(unit, unit)
            self._source = None
            self._close_if_done()
        return await self._again.get()

    async def _generate(self, lane: Place, actor: Actor, ticket: Ticket[Unit]) -> None:
        ticket.made = await lane.call(actor, ticket.unit, ticket.alone)
        # The hand is free only once there is room.
        await self._made.put(ticket)

    async def _score(self, lane: Place, actor: Actor, ticket: Ticket[Unit]) -> None:
        said = await lane.call(actor, ticket.unit, ticket.made, ticket.kept, ticket.alone)
        ticket.made = None
        if not isinstance(said, Again):
            await self._settle(said)
            return
        ticket.unit, ticket.kept = said.unit, ticket.kept if said.keeps is None else (*ticket.kept, said.keeps)
        self._again.give_back(ticket)

    def _return(self, ticket: Ticket[Unit], failure: Exception, blame: bool) -> None:
        """Back to the generators, whatever it failed at: what was made may be gone, and making it again is always right."""
        ticket.failures.append(failure)
        ticket.made = None
        as_a_whole = isinstance(failure, UnfitError)
        pieces = self._split(ticket.unit) if blame and not as_a_whole else []
        if len(pieces) > 1:
            self.under_way += len(pieces) - 1
            for drawn, piece in zip(self._split(ticket.drawn), pieces, strict=True):
                self._again.give_back(Ticket(drawn, piece, kept=ticket.kept, alone=True, failures=[*ticket.failures]))
            return
        if blame:
            ticket.strikes += PATIENCE - 1 if as_a_whole else ticket.alone
            ticket.alone = True
        if ticket.strikes < PATIENCE:
            self._again.give_back(ticket)

    async def _settle(self, receipt: Any) -> None:
        await self._receipts.put(receipt)
        self.under_way -= 1
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._source is None and self.under_way == 0:
            self._again.close()
            self._made.close()
            self._finished.set()
