"""Stand-in actors for the tests of the lanes, in virtual time."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

from promptmill.actors.flow.actor_slots import DiedError, LostError, Pool
from promptmill.actors.flow.lanes import Lanes

DEADLINE = 1000.0


def pieces_of(unit):
    """A tuple is a unit of several requests, a number one of a single request."""
    return list(unit) if isinstance(unit, tuple) else [unit]


class World:
    """Stand-in actors that do to each unit what the test says, and keep count."""

    def __init__(self, seed=0, trouble=None, poison=(), seconds=(1.0, 1.0), slow_start=0.0, dead_on_arrival=0):
        self.random, self.trouble, self.poison = random.Random(seed), trouble or {}, set(poison)
        self.seconds, self.slow_start, self.dead_on_arrival = seconds, slow_start, dead_on_arrival
        self.made, self.scored, self.waiting, self.most_waiting = Counter(), Counter(), 0, 0
        self.starts, self.calls_on = 0, Counter()

    def pool(self, kind, size, hands):
        return Pool(lambda: self.start(kind), size, hands, DEADLINE)

    async def start(self, kind):
        await asyncio.sleep(self.slow_start)
        self.starts += 1
        if self.starts <= self.dead_on_arrival:
            raise RuntimeError("no such model")
        return Standin(self, kind)

    async def convict(self, unit, reasons):
        return ("convicted", unit, tuple(reasons))

    def lanes(self, units, generators=(1, 2), scorers=(1, 1), waiting=4, most=0, grown=lambda size: None):
        pools = self.pool("generator", *generators), replace(self.pool("scorer", *scorers), most=most, grown=grown)
        return Lanes(units, *pools, self.convict, pieces_of, waiting)


class Standin:
    def __init__(self, world, kind):
        self.world, self.kind, self.dead = world, kind, asyncio.get_running_loop().create_future()

    async def call(self, unit, *rest):
        if self.dead.done():
            raise DiedError("was dead already")
        self.world.calls_on[self] += 1
        if rest[-1]:  # alone
            assert self.world.calls_on[self] == 1, "a unit that is to be alone has company"
        try:
            work = asyncio.ensure_future(self._work(unit))
            await asyncio.wait([work, self.dead], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                self.dead.result()
                raise DiedError("died under it")
            return work.result()
        finally:
            self.world.calls_on[self] -= 1

    async def _work(self, unit):
        world = self.world
        await asyncio.sleep(world.random.uniform(0, 2) * world.seconds[self.kind == "scorer"])
        trouble = world.trouble.get((self.kind, unit), [])
        what = trouble.pop() if trouble else None
        if world.poison & set(pieces_of(unit)) and self.kind == "generator":
            what = "die"
        if what in ("die", "node"):
            self.kill()
            raise DiedError(what, by_infrastructure=what == "node")
        if what == "hang":
            await asyncio.sleep(10 * DEADLINE)
        if what == "error":
            raise RuntimeError("broken row")
        if what == "lost":
            raise LostError("its node died")
        if self.kind == "generator":
            world.made[unit] += 1
            world.waiting += 1
            world.most_waiting = max(world.most_waiting, world.waiting)
            return f"images of {unit}"
        world.scored[unit] += 1
        world.waiting -= 1
        return ("scored", unit)

    def kill(self):
        if not self.dead.done():
            self.dead.set_result(None)


async def receipts_of(lanes):
    return [receipt async for receipt in lanes.run()]
