import asyncio
from dataclasses import dataclass, field

import pytest

from promptmill.actors.flow.placement import Room, Seat
from tests.actors.flow.virtual_time import run as run_in_virtual_time


@dataclass
class Machine:
    """Places for so much; who asks waits in a queue, as at Ray."""

    free: float
    queue: list = field(default_factory=list)
    holders: dict = field(default_factory=dict)

    def ask(self, name, size):
        placed = asyncio.get_running_loop().create_future()
        self.queue.append((name, size, placed))
        self.settle()
        return placed

    def leave(self, name):
        for place in [place for place in self.queue if place[0] == name]:
            self.queue.remove(place)
            place[2].set_result(None)  # Ray answers with the actor's death
        self.free += self.holders.pop(name, 0)
        self.settle()

    def settle(self):
        for place in list(self.queue):
            name, size, placed = place
            if size <= self.free:
                self.queue.remove(place)
                self.free -= size
                self.holders[name] = size
                placed.set_result(None)


async def generator(machine, room, number, size):
    """A generator's lane: it asks again whenever it was dismissed."""
    while True:
        await room.before_generator()
        name = f"g{number}"
        gone = asyncio.Event()

        def kill(name=name, gone=gone):
            machine.leave(name)
            gone.set()

        seat = Seat(kill)
        room.generator_waits(seat)
        await machine.ask(name, size)
        room.generator_placed(seat)
        if not seat.dismissed:
            room.generator_up(seat)
            await gone.wait()
        room.generator_gone(seat)


async def scorer(machine, room, number, size, up):
    await room.before_scorer()
    await room.scorer_waits(machine.ask(f"s{number}", size))
    up.append(number)


def started(machine, room, generators, scorers, size=0.75, scorer_size=0.25):
    up = []
    tasks = [asyncio.create_task(generator(machine, room, number, size)) for number in range(generators)]
    tasks += [asyncio.create_task(scorer(machine, room, number, scorer_size, up)) for number in range(scorers)]
    return tasks, up


def end(tasks):
    for task in tasks:
        task.cancel()


@pytest.mark.parametrize(("cards", "most"), [(1, 8), (1, 64), (4, 64)])
def test_a_pool_that_may_grow_begins_with_what_there_is_and_scorers_never_take_it_all(cards, most):
    async def go():
        machine, room = Machine(cards), Room(feeding=4)
        tasks, up = started(machine, room, most, most // 4)
        for joined in (0, 4):
            machine.free += joined
            machine.settle()
            await asyncio.sleep(1000)
            rendering = sum(name.startswith("g") for name in machine.holders)
            assert rendering >= min(most, cards + joined), "scorers hold what generators need"
            assert len(up) <= 1 + rendering // 4
        end(tasks)

    run_in_virtual_time(go())


def test_where_the_last_scorer_goes_one_generator_gives_way_however_many_wait():
    async def go():
        machine, room = Machine(2), Room(feeding=4)
        tasks, up = started(machine, room, 8, 1, size=0.75, scorer_size=0.5)
        await asyncio.sleep(10)
        assert up == [0] and len(machine.holders) == 3
        del machine.holders["s0"]  # and its place with it: what is left is full
        room.scorer_gone(True)
        began = asyncio.get_running_loop().time()
        again = asyncio.create_task(scorer(machine, room, 1, 0.5, up))
        await again
        assert asyncio.get_running_loop().time() - began < 1.5 * 30, "more than one generator had to go"
        assert up == [0, 1]
        end(tasks)

    run_in_virtual_time(go())


def test_no_generator_asks_for_a_place_before_a_scorer_has_one():
    async def go():
        machine, room = Machine(0), Room(feeding=4)
        tasks, up = started(machine, room, 3, 1)
        await asyncio.sleep(100)
        assert [name for name, _, _ in machine.queue] == ["s0"] and not up
        machine.free += 4
        machine.settle()
        await asyncio.sleep(1)
        assert sorted(machine.holders) == ["g0", "g1", "g2", "s0"]
        end(tasks)

    run_in_virtual_time(go())


@pytest.mark.parametrize(("generators", "waits_s"), [(4, 0), (3, 30)])
def test_a_scorer_that_comes_beside_others_lets_generators_take_their_places_first(generators, waits_s):
    async def go():
        machine, room = Machine(4), Room(feeding=1, placed_first=4)
        tasks, up = started(machine, room, generators, 1, size=0.95, scorer_size=0.05)
        await asyncio.sleep(1)
        assert len(machine.holders) == generators + 1
        began = asyncio.get_running_loop().time()
        await scorer(machine, room, 1, 0.05, up)
        assert asyncio.get_running_loop().time() - began == pytest.approx(waits_s)
        end(tasks)

    run_in_virtual_time(go())
