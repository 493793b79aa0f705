"""Units that a scorer sends back to the generators, pass after pass, as drafts are."""

import asyncio
import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.actors.flow.actor_slots import DiedError, LostError
from promptmill.actors.flow.lanes import Again, Lanes
from tests.actors.flow.lanes_world import Standin, World, receipts_of
from tests.actors.flow.virtual_time import run


@dataclass(frozen=True)
class Staged:
    """Requests that pass several times; `passed` has what came of them at each pass, as a cascade's unit has its drafts' scores."""

    requests: tuple[int, ...]
    passed: tuple[str, ...] = ()

    def pieces(self):
        return [dataclasses.replace(self, requests=(request,)) for request in self.requests]


@dataclass(frozen=True)
class Images:
    """What a generator made of requests at a pass, numbered."""

    requests: tuple[int, ...]
    at: int
    number: int


class Cascade(World):
    """Units that a scorer sends back until they have passed so often. Generators and scorers meet trouble by request and pass."""

    def __init__(self, passes, keeping, seed, trouble):
        super().__init__(seed, slow_start=3.0)
        self.passes, self.keeping, self.trouble = passes, keeping, trouble
        self.under_way, self.most_under_way = set(), 0
        self.serial, self.gone, self.told = itertools.count(), set(), set()

    def lanes(self, units, generators, scorers, waiting):
        pools = self.pool("generator", *generators), self.pool("scorer", *scorers)
        return Lanes(self.drawing(units), *pools, self.convict, Staged.pieces, waiting)

    def drawing(self, units):
        for unit in units:
            self.under_way.add(unit.requests)
            self.most_under_way = max(self.most_under_way, len(self.under_way))
            yield unit

    async def start(self, kind):
        await asyncio.sleep(self.slow_start)
        return Passing(self, kind)


class Passing(Standin):
    async def call(self, unit, *rest):
        self.rest = rest
        return await super().call(unit, *rest)

    async def _work(self, unit):
        world = self.world
        rest = self.rest
        await asyncio.sleep(world.random.uniform(0, 2))
        for request in unit.requests:
            trouble = world.trouble.get((self.kind, request, len(unit.passed)), [])
            what = trouble.pop() if trouble else None
            if what == "die":
                self.kill()
                raise DiedError(what)
            if what == "lost":
                world.gone |= {images.number for rest in self.rest[1:-1] for images in rest}
                raise LostError("its node died")
        if self.kind == "generator":
            return Images(unit.requests, len(unit.passed), next(world.serial))
        made, kept, _ = rest
        assert (made.requests, made.at) == (unit.requests, len(unit.passed))
        # Of each pass that was kept, in their order, images that hold this unit's requests, and are still there.
        assert [images.at for images in kept] == [n for n in range(len(unit.passed)) if n in world.keeping]
        assert all(set(unit.requests) <= set(images.requests) for images in kept)
        if gone := frozenset(world.gone & {images.number for images in kept}):
            # Pieces of a unit share its kept images, and each piece is told once that these are gone.
            assert (unit.requests, gone) not in world.told, "asked again for what is gone"
            world.told.add((unit.requests, gone))
            raise LostError("its node died before")
        if len(unit.passed) + 1 < world.passes:
            keeps = made if len(unit.passed) in world.keeping else None
            return Again(dataclasses.replace(unit, passed=(*unit.passed, "scored")), keeps)
        for whole in [whole for whole in world.under_way if set(unit.requests) & set(whole)]:
            world.under_way.discard(whole)
        return ("scored", unit)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    units=st.lists(st.integers(1, 3), max_size=12),
    passes=st.integers(1, 4),
    keeping=st.sets(st.integers(0, 2)),
    generators=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    scorers=st.tuples(st.integers(1, 2), st.just(1)),
    waiting=st.integers(1, 3),
    trouble=st.dictionaries(
        st.tuples(st.sampled_from(["generator", "scorer"]), st.integers(0, 20), st.integers(0, 3)),
        st.lists(st.sampled_from(["die", "lost"]), min_size=1, max_size=2).filter(lambda some: some.count("die") < 2),
        max_size=6,
    ),
)
def test_units_that_pass_several_times_are_settled_once_whatever_dies_at_whatever_pass(
    seed, units, passes, keeping, generators, scorers, waiting, trouble
):
    numbers = iter(range(100))
    some = [Staged(tuple(next(numbers) for _ in range(size))) for size in units]
    # Each dies twice at most, which convicts nobody.
    deaths = Counter()
    for (_, request, _), what in trouble.items():
        deaths[request] += "die" in what
        if deaths[request] > 2:
            what[:] = ["lost"]
    world = Cascade(passes, keeping, seed, {key: list(what) for key, what in trouble.items()})
    receipts, _ = run(receipts_of(world.lanes(some, generators, scorers, waiting)))
    assert {verdict for verdict, *_ in receipts} <= {"scored"}
    assert sorted(n for _, unit in receipts for n in unit.requests) == sorted(n for unit in some for n in unit.requests)
    assert {len(unit.passed) for _, unit in receipts} <= {passes - 1}
    # Those that come back go before new ones, so no more are under way than hands and places.
    room = generators[0] * generators[1] + scorers[0] + max(waiting, generators[0])
    assert world.most_under_way <= room + 1


def test_of_pieces_that_share_what_is_kept_each_learns_that_it_is_gone_and_begins_anew():
    world = Cascade(2, {0}, 0, {("scorer", 7, 1): ["lost", "die"]})
    some = [Staged((number,)) for number in range(7)] + [Staged((7, 8))]
    receipts, _ = run(receipts_of(world.lanes(some, (1, 1), (1, 1), 1)))
    assert {verdict for verdict, _ in receipts} == {"scored"} and len(receipts) == 9
    assert {requests for requests, _ in world.told} == {(8,)}


def test_a_unit_that_died_at_a_later_pass_goes_on_from_there():
    world = Cascade(3, set(), 0, {("generator", 0, 2): ["die"], ("scorer", 1, 1): ["die"]})
    seen = Counter()
    real = Passing._work

    async def counted(self, unit):
        seen.update((self.kind, request, len(unit.passed)) for request in unit.requests)
        return await real(self, unit)

    with mock.patch.object(Passing, "_work", counted):
        receipts, _ = run(receipts_of(world.lanes([Staged((0,)), Staged((1,))], (1, 1), (1, 1), 1)))
    assert len(receipts) == 2
    assert (seen["generator", 0, 0], seen["generator", 0, 1], seen["generator", 0, 2]) == (1, 1, 2)
    assert (seen["generator", 1, 0], seen["generator", 1, 1], seen["generator", 1, 2]) == (1, 2, 1)


def test_while_a_unit_is_scored_the_generator_has_others():
    world = Cascade(4, set(), 0, {})
    world.random.uniform = lambda low, high: 1.0
    _, seconds = run(receipts_of(world.lanes([Staged((n,)) for n in range(50)], (1, 2), (4, 1), 4)))
    # A second a pass, four passes, two hands that never wait for a scorer.
    assert seconds == pytest.approx(3.0 + 50 * 4 / 2, abs=4.0)
