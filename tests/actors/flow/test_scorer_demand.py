"""That scorers come where units wait for them, and nowhere else, and that no unit's fate depends on how many there are."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.actors.flow.actor_slots import PATIENCE, StartError
from promptmill.actors.flow.scorer_demand import ScorerDemand
from tests.actors.flow.lanes_world import World, receipts_of
from tests.actors.flow.virtual_time import run


class Even(World):
    """Units that all take the same time."""

    def __init__(self, rendering_s, scoring_s, **more):
        super().__init__(seconds=(rendering_s, scoring_s), **more)
        self.random.uniform = lambda low, high: 1.0


@pytest.mark.parametrize(("generators", "scoring_s", "needed"), [(8, 1.0, 1), (8, 4.0, 4), (64, 2.0, 13), (8, 20.0, 16)])
def test_the_pool_grows_to_what_the_generators_need_and_then_they_hardly_wait(generators, scoring_s, needed):
    sizes, units = [1], 60 * generators
    world = Even(20.0, scoring_s, slow_start=30.0)  # two at a time, so that one takes 10 s of a generator
    lanes = world.lanes(range(units), (generators, 2), (1, 1), most=generators * 4, grown=sizes.append)
    receipts, seconds = run(receipts_of(lanes))
    assert len(receipts) == units
    assert needed <= sizes[-1] <= 1.3 * needed + 1
    assert seconds < 1.35 * 10 * 60, "the generators wait for scorers all the same"


@given(st.integers(1, 64), st.integers(1, 3), st.floats(0.01, 0.85))
@settings(max_examples=20)
def test_generators_that_finish_together_call_for_no_scorer_that_keeps_up(generators, hands, busy):
    rendering_s = 10.0 * hands
    world = Even(rendering_s, busy * 10.0 / generators)
    grown = []
    run(receipts_of(world.lanes(range(5 * generators), (generators, hands), (1, 1), most=8, grown=grown.append)))
    assert grown == []


@given(
    seed=st.integers(0, 2**32),
    most=st.integers(1, 6),
    pace=st.floats(0.1, 30.0),
    trouble=st.dictionaries(
        st.tuples(st.sampled_from(["generator", "scorer"]), st.integers(0, 39)),
        st.lists(st.sampled_from(["die", "node", "error", "lost"]), max_size=2),
        max_size=8,
    ),
)
@settings(max_examples=50)
def test_whatever_dies_as_scorers_come_every_unit_is_settled_once_and_there_are_no_more_than_may_be(seed, most, pace, trouble):
    sizes = [1]
    world = World(seed, trouble, seconds=(1.0, pace), slow_start=2.0)
    receipts, _ = run(receipts_of(world.lanes(range(40), (3, 2), (1, 1), most=most, grown=sizes.append)))
    assert sorted(unit for _, unit, *_ in receipts) == [*range(40)]
    assert sizes == sorted(set(sizes)) and sizes[-1] <= most


def test_a_scorer_that_does_not_start_beside_others_ends_nothing():
    class Full(Even):
        async def start(self, kind):
            if kind == "scorer" and self.starts == 3:
                self.refused = True
                raise StartError("out of memory")
            return await super().start(kind)

    world = Full(1.0, 5.0)
    receipts, _ = run(receipts_of(world.lanes(range(40), (2, 2), (1, 1), most=4)))
    assert len(receipts) == 40 and world.refused
    alone = Full(1.0, 5.0)
    alone.starts = 3
    with pytest.raises(StartError):
        run(receipts_of(alone.lanes(range(4), (2, 2), (1, 1), most=4)))


def test_the_failures_of_a_scorer_beside_others_do_not_count_against_the_first_one():
    class Frail(Even):
        """The second scorer never comes; then the first one dies, and comes again at its second try."""

        refused, scorers = 0, 0

        async def start(self, kind):
            if kind == "scorer":
                self.scorers += 1
                if self.scorers > 1 and self.refused <= PATIENCE:
                    self.refused += 1
                    raise RuntimeError("no room")
            return await super().start(kind)

    world = Frail(1.0, 5.0)
    world.trouble = {("scorer", 30): ["die"]}
    receipts, _ = run(receipts_of(world.lanes(range(40), (2, 2), (1, 1), most=2)))
    assert len(receipts) == 40 and world.refused == PATIENCE + 1


def test_while_a_scorer_is_on_its_way_no_further_one_is_asked_for():
    class Late(Even):
        async def start(self, kind):
            if kind == "scorer" and self.starts == 3:
                self.starts += 1
                await asyncio.sleep(10_000)
            return await super().start(kind)

    sizes = []
    world = Late(1.0, 5.0)
    run(receipts_of(world.lanes(range(400), (2, 2), (1, 1), most=1000, grown=sizes.append)))
    assert len(sizes) == 1


def test_units_that_were_rendered_before_the_pool_grew_say_nothing_of_it():
    demand = ScorerDemand()
    for _ in range(4):
        demand.rendered(10.0)
        demand.scored(30.0)
    assert demand.wanted(2, 1, rendered_at=5.0, rendering_s=10.0, waited_s=11.0) == 7
    assert demand.wanted(2, 1, rendered_at=5.0, rendering_s=10.0, waited_s=10.0) == 1
    demand.grown(50.0)
    demand.scored(30.0)
    assert demand.wanted(2, 3, rendered_at=49.0, rendering_s=10.0, waited_s=100.0) == 3
    assert demand.wanted(2, 3, rendered_at=51.0, rendering_s=10.0, waited_s=100.0) == 7
