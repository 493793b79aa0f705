import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.actors.flow.actor_slots import PATIENCE, AbortError, StartError, UnfitError
from tests.actors.flow.lanes_world import DEADLINE, Standin, World, pieces_of, receipts_of
from tests.actors.flow.virtual_time import DeadlockError, run

troubles = st.dictionaries(
    st.tuples(st.sampled_from(["generator", "scorer"]), st.integers(0, 39)),
    # Fewer than would convict, whatever the order; any number of deaths by infrastructure.
    st.tuples(
        st.lists(st.sampled_from(["die", "hang", "error"]), max_size=1),
        st.lists(st.sampled_from(["node", "lost"]), max_size=4),
    ).map(lambda parts: parts[0] + parts[1]),
    max_size=25,
)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    units=st.integers(0, 40),
    generators=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    scorers=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    waiting=st.integers(1, 6),
    trouble=troubles,
    poison=st.sets(st.integers(0, 39), max_size=3),
    pace=st.tuples(st.sampled_from([0.1, 1.0, 20.0]), st.sampled_from([0.1, 1.0, 20.0])),
)
def test_whatever_dies_errs_or_hangs_every_unit_is_settled_once_and_only_poison_is_convicted(
    seed, units, generators, scorers, waiting, trouble, poison, pace
):
    world = World(seed, {key: list(value) for key, value in trouble.items()}, poison, pace, slow_start=3.0)
    receipts, _ = run(receipts_of(world.lanes(range(units), generators, scorers, waiting)))
    assert sorted(unit for _, unit, *_ in receipts) == list(range(units))
    assert {unit for verdict, unit, *_ in receipts if verdict == "convicted"} == poison & set(range(units))


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_slow_scorers_hold_the_generators_back(waiting, generators, hands):
    world = World(seconds=(0.01, 10.0))
    receipts, _ = run(receipts_of(world.lanes(range(60), (generators, hands), (1, 1), waiting)))
    assert len(receipts) == 60
    # In the channel, in each generator's hands, and one with the scorer.
    assert world.most_waiting <= max(waiting, generators) + generators * hands + 1


def test_a_reader_who_does_not_read_holds_everything_back():
    world = World()

    async def read_one_and_wait():
        lanes = world.lanes(range(1000))
        stream = lanes.run()
        await anext(stream)
        await asyncio.sleep(10_000)
        await stream.aclose()

    run(read_one_and_wait())
    assert sum(world.made.values()) < 30


def test_a_generator_always_has_its_next_unit_waiting():
    world = World(seconds=(1.0, 0.01))
    world.random.uniform = lambda low, high: 1.0
    _, seconds = run(receipts_of(world.lanes(range(100), (5, 2), (1, 1))))
    assert seconds == pytest.approx(100 / 10, abs=1.0)


def test_a_poison_unit_dies_once_in_company_and_is_tried_alone_three_times():
    world = World(poison=[3])
    receipts, _ = run(receipts_of(world.lanes(range(10))))
    ((_, unit, reasons),) = [r for r in receipts if r[0] == "convicted"]
    assert unit == 3 and len(reasons) in (PATIENCE, PATIENCE + 1)
    assert all(world.scored[unit] == 1 for unit in range(10) if unit != 3)


def test_a_death_beside_others_is_no_strike_of_those_that_convict():
    world = World(trouble={("generator", 2): ["die"] * PATIENCE})
    receipts, _ = run(receipts_of(world.lanes(range(4))))
    # It died once beside another unit, and then alone, once less than would convict it.
    assert Counter(r[0] for r in receipts) == {"scored": 4}


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=12),
    st.sets(st.integers(0, 71), max_size=4),
    st.sets(st.integers(0, 71), max_size=3),
    st.integers(0, 2**32),
)
def test_of_a_unit_that_dies_only_the_poison_is_convicted_and_its_neighbours_are_made_in_pieces(sizes, poison, mishaps, seed):
    numbers = iter(range(100))
    units = [tuple(next(numbers) for _ in range(size)) for size in sizes]
    trouble = {("generator" if seed % 2 else "scorer", units[i % len(units)]): ["die"] for i in mishaps}
    world = World(seed, trouble, poison)
    receipts, _ = run(receipts_of(world.lanes(units, (2, 2), (1, 1))))
    settled = sorted(request for _, unit, *_ in receipts for request in pieces_of(unit))
    assert settled == sorted(request for unit in units for request in unit)
    assert {unit for verdict, unit, *_ in receipts if verdict == "convicted"} == poison & set(settled)


def test_what_does_not_fit_is_tried_once_more_as_a_whole_and_then_fails_as_a_whole():
    tries = Counter()

    class Small(Standin):
        async def _work(self, unit):
            tries[unit] += 1
            if unit == (3, 4) or (unit == (5, 6) and tries[unit] == 1):
                raise UnfitError("out of memory")
            return await super()._work(unit)

    world = World()

    async def start(kind):
        world.starts += 1
        return Small(world, kind) if kind == "generator" else Standin(world, kind)

    world.start = start
    receipts, _ = run(receipts_of(world.lanes([(1, 2), (3, 4), (5, 6)], (1, 1))))
    assert sorted(r[:2] for r in receipts) == [("convicted", (3, 4)), ("scored", (1, 2)), ("scored", (5, 6))]
    assert tries[(3, 4)] == tries[(5, 6)] == 2
    assert world.starts == 2 + 3


def test_deaths_by_infrastructure_convict_nobody():
    world = World(trouble={("generator", 0): ["node"] * 20})
    receipts, _ = run(receipts_of(world.lanes(range(3))))
    assert Counter(r[0] for r in receipts) == {"scored": 3}


def test_a_hung_unit_is_cut_off_by_the_deadline_and_its_neighbours_go_on():
    world = World(trouble={("generator", 1): ["hang"] * PATIENCE * 2})
    receipts, seconds = run(receipts_of(world.lanes(range(4))))
    assert Counter(r[0] for r in receipts) == {"scored": 3, "convicted": 1}
    assert seconds < (PATIENCE + 3) * DEADLINE


def test_lost_images_are_made_again():
    world = World(trouble={("scorer", 2): ["lost"]})
    receipts, _ = run(receipts_of(world.lanes(range(5))))
    assert len(receipts) == 5 and world.made[2] == 2


def test_actors_that_cannot_start_end_the_run_with_their_reason():
    world = World(dead_on_arrival=1000)
    with pytest.raises(StartError, match="no such model"):
        run(receipts_of(world.lanes(range(5))))


def test_one_failed_start_is_forgiven():
    world = World(dead_on_arrival=2)
    receipts, _ = run(receipts_of(world.lanes(range(5), (1, 1), (1, 1))))
    assert len(receipts) == 5


def test_stopping_finishes_what_is_under_way_and_draws_no_more():
    world = World()
    drawn = []

    async def stop_after_ten():
        lanes = world.lanes(unit for unit in range(10_000) if drawn.append(unit) is None)
        settled = []
        async for receipt in lanes.run():
            settled.append(receipt)
            if len(settled) == 10:
                lanes.stop()
        return settled

    settled, _ = run(stop_after_ten())
    assert len(settled) == len(drawn) < 30


def test_an_error_of_the_source_is_the_runs():
    def source():
        yield 1
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run(receipts_of(World().lanes(source())))


def test_an_actor_that_never_comes_holds_no_unit_back():
    world = World()
    places = iter(range(100))

    async def start(kind):
        if kind == "generator" and next(places) > 0:
            await asyncio.get_running_loop().create_future()
        return Standin(world, kind)

    world.start = start
    receipts, _ = run(receipts_of(world.lanes(range(20), (3, 2), (1, 1))))
    assert Counter(r[0] for r in receipts) == {"scored": 20}


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["generator", "scorer"]),
    seed=st.integers(0, 2**32),
    units=st.integers(1, 12),
    size=st.integers(2, 4),
    hands=st.integers(1, 3),
    deaths=st.dictionaries(st.integers(0, 11), st.sampled_from(["node", "die"]), max_size=3),
)
def test_a_dead_actor_that_nobody_replaces_holds_no_unit_back_while_another_lives(kind, seed, units, size, hands, deaths):
    trouble = {(kind, unit): [what] for unit, what in list(deaths.items())[: size - 1]}
    world = World(seed, trouble)
    starts = iter(range(100))

    async def start(of):
        if of == kind and next(starts) >= size:
            await asyncio.get_running_loop().create_future()
        return Standin(world, of)

    world.start = start
    pools = {"generators": (1, 2), "scorers": (1, 1), f"{kind}s": (size, hands)}
    receipts, _ = run(receipts_of(world.lanes(range(units), **pools)))
    assert sorted(receipts) == [("scored", unit) for unit in range(units)]


def test_what_is_no_fact_about_a_unit_ends_the_run_with_its_reason():
    world = World()

    class Full(Standin):
        async def call(self, unit, *rest):
            raise AbortError("no space left on the output")

    async def start(kind):
        return Full(world, kind) if kind == "scorer" else Standin(world, kind)

    world.start = start
    with pytest.raises(AbortError, match="no space left"):
        run(receipts_of(world.lanes(range(20))))


def test_a_unit_that_waits_for_another_on_its_actor_is_given_the_time_of_both():
    world = World(seconds=(0.9 * DEADLINE, 1.0))

    class Serial(Standin):
        def __init__(self, *args):
            super().__init__(*args)
            self.turn = asyncio.Lock()

        async def _work(self, unit):
            async with self.turn:
                await asyncio.sleep(0.9 * DEADLINE)
                world.made[unit] += 1
            return unit

    async def start(kind):
        world.starts += 1
        return Serial(world, kind) if kind == "generator" else Standin(world, kind)

    world.start = start
    receipts, _ = run(receipts_of(world.lanes(range(10), (1, 2), (1, 1))))
    assert len(receipts) == 10
    assert world.starts == 2


def test_the_virtual_loop_notices_a_deadlock():
    async def wait_for_ever():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(DeadlockError):
        run(wait_for_ever())


def test_hundreds_of_lanes_stay_busy_over_thousands_of_units():
    world = World(seconds=(10.0, 0.1))
    _, seconds = run(receipts_of(world.lanes(range(5000), (200, 2), (8, 1), waiting=64)))
    # 200 actors that take two calls at a time, ten seconds a call on average.
    assert seconds < 1.2 * 5000 * 10 / 400
