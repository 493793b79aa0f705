"""Moves units between actors: lanes of coroutines between bounded channels. Knows nothing of Ray; takes callables.

    source ─▶ supply ─▶ generator lanes ─▶ made ─▶ scorer lanes ─▶ receipts
                 ▲─────────────── again ───────────────┘

Every actor has a lane, with as many hands as the actor takes calls at a time. A hand takes a unit, awaits the actor, hands the
result on. The bounded channels are the backpressure; closing the source is the gentle stop.

A dead actor is replaced by its lane, and the units in flight on the actor go back in their smallest pieces: each runs alone on its
actor, so that a piece that kills is told from those beside it. A piece that dies alone `PATIENCE` times is convicted, and settled
as failed. A piece can run twice (its receipt was lost with its actor), so the work of actors has to be idempotent. Every unit, or
each of its pieces, is settled once.

A scorer may send a unit back to the generators, further on than it was. Such a unit goes before new units, and there is always room
for it. No scorer ever waits for a generator, so nothing can wait in a circle. A new unit is drawn only where none has come back, so
no more units are under way than there are hands and places in the channels.

The pool of scorers grows where units wait too long for a scorer, up to the pool's `most` (`scorer_demand.py`).
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
from promptmill.actors.flow.scorer_demand import ScorerDemand

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Again(Generic[Unit]):
    """Holds a scorer's answer for a unit that has to pass once more.

    Attributes:
        unit: The unit as it goes on.
        keeps: The result of this pass that the unit's scorer gets at the later passes too; None is nothing.
    """

    unit: Unit
    keeps: Any = None


@dataclass
class Ticket(Generic[Unit]):
    """Holds a unit on its way.

    The ticket has the unit as it was drawn and as it stands, the generator's result of this pass, the results that its scorers keep
    of earlier passes, and its failures. `PATIENCE` strikes convict the unit. `rendering_s` are the seconds of the generator's call
    of this pass, which ended at `rendered_at`.
    """

    drawn: Unit
    unit: Unit
    made: Any = None
    kept: tuple[Any, ...] = ()
    alone: bool = False
    strikes: int = 0
    failures: list[Exception] = field(default_factory=list)
    rendered_at: float = 0.0
    rendering_s: float = 0.0


class Lanes(Generic[Unit]):
    """Runs a source of units through generators and scorers.

    Args:
        source: The units, drawn one by one as there is room for them.
        generators: Called with (unit, alone); the result goes to a scorer as it is.
        scorers: Called with (unit, made, kept, alone); the result is the receipt, or `Again`.
        convict: Settles a unit that cannot be done: takes the unit and the errors of its tries, returns its receipt.
        split: Returns the pieces that a unit is tried in once it died; the unit alone where it has none.
        waiting: How many made units may wait for a scorer; one for each generator may in any case.
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
        self._demand = ScorerDemand()
        self._of_generators: list[Place] = []
        self._of_scorers: list[Place] = []
        self._grow: Callable[[int], None] = lambda size: None
        self._counted = scorers.size  # scorers whose coming the demand has been told of

    def stop(self) -> None:
        """Stop drawing units; the units under way are finished."""
        self._source = None
        self._close_if_done()

    async def run(self) -> AsyncIterator[Any]:
        """Yield the receipts, as units are settled. Leaving early cancels the rest.

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

                def opens(pool: Pool, lanes: list[Place], take: Callable, serve: Callable) -> Callable[[int], None]:
                    starts = Starts(pool)

                    def to(size: int) -> None:
                        while len(lanes) < size:
                            spare = len(lanes) >= pool.size
                            # The failures of one that the run goes on without are not the others'.
                            lanes.append(lane := Place(Starts(pool) if spare else starts, spare))
                            for _ in range(pool.hands):
                                group.create_task(self._hand(lane, take, serve))

                    return to

                opens(self._generators, self._of_generators, self._next_to_make, self._generate)(self._generators.size)
                self._grow = opens(self._scorers, self._of_scorers, self._made.get, self._score)
                self._grow(self._scorers.size)
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
                if ticket.kept:  # nobody knows which result is gone
                    ticket.unit, ticket.kept = ticket.drawn, ()
                self._return(ticket, error, blame=False)
            except DiedError as error:
                self._return(ticket, error, blame=not error.by_infrastructure)
            except (StartError, AbortError):
                raise
            except Exception as error:  # an actor's error is the fault of this unit, not of the run
                self._return(ticket, error, blame=True)
            if ticket.strikes >= PATIENCE:
                await self._settle(await self._convict(ticket.unit, ticket.failures))
        lane.close()

    async def _up(self, lane: Place) -> bool:
        """Wait for a lane's living actor; return False where all work is done before, or where a spare actor does not start."""
        start, finished = asyncio.ensure_future(lane.up()), asyncio.ensure_future(self._finished.wait())
        try:
            await asyncio.wait((start, finished), return_when=asyncio.FIRST_COMPLETED)
            return start.done() and start.result() is not None
        except StartError:
            if not lane.spare:
                raise
            return False
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
        began = _now()
        ticket.made = await lane.call(actor, ticket.unit, ticket.alone)
        ticket.rendered_at = _now()
        ticket.rendering_s = ticket.rendered_at - began
        self._demand.rendered(lane.worked_s())
        # The hand is free only once there is room. Generators that start together finish together, so there is room for all.
        await self._made.put(ticket, least=self._rendering)

    async def _score(self, lane: Place, actor: Actor, ticket: Ticket[Unit]) -> None:
        began = _now()
        said = await lane.call(actor, ticket.unit, ticket.made, ticket.kept, ticket.alone)
        ticket.made = None
        self._demand.scored(_now() - began)
        self._keep_up(ticket, began)
        if not isinstance(said, Again):
            await self._settle(said)
            return
        ticket.unit, ticket.kept = said.unit, ticket.kept if said.keeps is None else (*ticket.kept, said.keeps)
        self._again.give_back(ticket)

    @property
    def _rendering(self) -> int:
        """Return how many generators are up."""
        return sum(lane.is_up for lane in self._of_generators)

    def _keep_up(self, ticket: Ticket[Unit], began: float) -> None:
        """Open lanes for more scorers where a unit, scored since `began`, has waited too long for that."""
        pool, there = self._scorers, len(self._of_scorers)
        # While a scorer is on its way, nobody knows whether one more is needed.
        if there >= pool.most or not all(lane.is_up for lane in self._of_scorers):
            return
        if there > self._counted:
            self._counted = there
            self._demand.grown(_now())
        waited_s = began - ticket.rendered_at
        wanted = self._demand.wanted(self._rendering, there, ticket.rendered_at, ticket.rendering_s, waited_s)
        if wanted > there:
            self._grow(min(wanted, pool.most))
            pool.grown(len(self._of_scorers))

    def _return(self, ticket: Ticket[Unit], failure: Exception, blame: bool) -> None:
        """Return a unit to the generators after any failure: the result may be gone, and making it again is always right."""
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


def _now() -> float:
    return asyncio.get_running_loop().time()
