"""Measures the driver's own cost: the lanes in virtual time, with stand-in actors that take no time of this machine.

    python -m benchmarks.lanes --lanes 1000 --units 1000000

prints the driver's own seconds a unit, the units a second that it could feed, how that compares with a plain asyncio queue and
workers over the same stand-ins in the same run, and the share of lane time that was spent waiting for the driver.
"""

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable

import click

from promptmill.actors.flow.actor_slots import Pool
from promptmill.actors.flow.lanes import Lanes
from tests.actors.flow.virtual_time import run

UNIT_S = 20.0  # virtual seconds of a generator a unit, as on a GPU


class Standin:
    """Imitates an actor by sleeping in virtual time."""

    def __init__(self, seconds: float):
        self.seconds, self.worked = seconds, 0.0

    async def call(self, *work: object) -> object:
        await asyncio.sleep(self.seconds)
        self.worked += self.seconds
        return work[0]

    def kill(self) -> None:
        pass


def pool(size: int, hands: int, seconds: float, started: list[Standin]) -> Pool:
    """Return a pool of stand-ins; each that is started is added to `started`."""

    async def start() -> Standin:
        started.append(Standin(seconds))
        return started[-1]

    return Pool(start, size, hands)


async def through_lanes(lanes: int, units: int, generators: list[Standin]) -> None:
    """Send units through promptmill's lanes."""

    async def convict(unit: int, reasons: list[str]) -> None:
        raise AssertionError(f"unit {unit} was convicted: {reasons}")

    flow = Lanes(
        range(units),
        pool(lanes, 2, 2 * UNIT_S, generators),
        pool(max(1, lanes // 20), 1, 0.5, []),
        convict,
        lambda unit: [unit],
        4 * lanes,
    )
    settled = [0]
    async for _ in flow.run():
        settled[0] += 1
    assert settled[0] == units


async def through_a_queue(lanes: int, units: int, generators: list[Standin]) -> None:
    """Send units through the named alternative: asyncio.Queue and workers, no deaths, no deadlines, no order to stop."""
    queue: asyncio.Queue[int | None] = asyncio.Queue(4 * lanes)
    generators += [Standin(2 * UNIT_S) for _ in range(lanes)]
    scorers = [Standin(0.5) for _ in range(max(1, lanes // 20))]
    made: asyncio.Queue[int | None] = asyncio.Queue(4 * lanes)

    async def work(actor: Standin, take: asyncio.Queue, give: Callable[[object], Awaitable[None]]) -> None:
        while (unit := await take.get()) is not None:
            await give(await actor.call(unit))

    async def settle(_: object) -> None:
        pass

    hands = [asyncio.create_task(work(actor, queue, made.put)) for actor in generators for _ in range(2)]
    scoring = [asyncio.create_task(work(actor, made, settle)) for actor in scorers]
    for unit in range(units):
        await queue.put(unit)
    for _ in hands:
        await queue.put(None)
    await asyncio.gather(*hands)
    for _ in scoring:
        await made.put(None)
    await asyncio.gather(*scoring)


@click.command()
@click.option("--lanes", default=1000, show_default=True)
@click.option("--units", default=1_000_000, show_default=True)
def main(lanes: int, units: int) -> None:
    """Measure the lanes against a plain queue."""
    spent = {}
    for name, flow in (("lanes", through_lanes), ("queue", through_a_queue)):
        generators: list[Standin] = []
        started = time.process_time()
        _, virtual = run(flow(lanes, units, generators))
        spent[name] = time.process_time() - started
        busy = sum(g.worked for g in generators) / (2 * virtual * lanes)
        rate = units / spent[name]
        idle = f"lanes waiting {100 * (1 - busy):.2f}% of the time"
        click.echo(f"{name}: {1e6 * spent[name] / units:.1f} us a unit, {rate:,.0f} units/s, {idle}")
    click.echo(f"lanes cost {spent['lanes'] / spent['queue']:.2f}x a plain queue, which survives nothing")
    click.echo(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
