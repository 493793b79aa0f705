"""What is left to do of a shard, by the parts that are there."""

from dataclasses import replace
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.loading import load
from promptmill.configs.parameters import Growing
from promptmill.jobs.planning.plan import ShardPlan
from promptmill.jobs.running.open_shard import Open, units_of
from promptmill.pipelines.work.units import Placed, Unit, at_once, is_long
from promptmill.shards.parts import part_name
from tests.pipelines.plain import request

# At a batch of one and four guided steps 40 candidates are a slice.
MANY, FEW = request("many", steps=4, candidates=100), request("few", steps=4, candidates=2)
CUT = Unit(0, 0, (Placed(0, MANY),))
WHOLE = Unit(0, 1, (Placed(1, FEW), Placed(2, FEW)))
SLICES = CUT.slices(1)
NAMES = [unit.name for unit in (CUT, *SLICES, WHOLE, *WHOLE.pieces())]


@given(st.sets(st.sampled_from(NAMES)), st.sampled_from([0, 2]), st.sampled_from([0, 2]))
def test_what_is_rendered_is_what_has_no_part_and_each_unit_is_made_of_one_part_or_its_pieces(there, generation, parts_of):
    units = [replace(unit, generation=generation) for unit in (CUT, WHOLE)]
    cut, whole = units
    slices, pieces = cut.slices(1), whole.pieces()
    parts = {part_name(name + (f".{parts_of}" if parts_of else "")) for name in there}
    shard = Open(0, generation)
    left = {unit.name for unit in shard.take_in(units, parts, 1)}
    assert shard.left == left

    def lack(some):
        return {unit.name for unit in some if part_name(unit.name) not in parts}

    own = generation == parts_of
    joined = own and CUT.name in there
    assert left & {unit.name for unit in slices} == (set() if joined else lack(slices))
    assert set(shard.joins) == (set() if joined else {cut.name})
    assert all(made == slices for _, made in shard.joins.values())
    # Whatever of it lies there goes with the shard's parts.
    assert {unit.name for unit in slices} <= shard.others and cut.name in shard.made_of and cut.name not in left
    in_pieces = own and WHOLE.name not in there and bool(there & {unit.name for unit in WHOLE.pieces()})
    rest = left - {unit.name for unit in slices}
    assert rest == (lack(pieces) if in_pieces else lack([whole]))
    assert shard.made_of - {cut.name} == ({unit.name for unit in pieces} if in_pieces else {whole.name})


def test_a_slice_that_died_has_no_pieces_and_stays_what_the_shard_waits_for():
    shard = Open(0)
    shard.take_in([CUT], set(), 1)
    left = set(shard.left)
    assert shard.split(SLICES[1]) == [SLICES[1]]
    assert shard.left == left == {unit.name for unit in SLICES}
    assert shard.made_of == {CUT.name}


@cache
def config_of(batch):
    settings = (f"model.batch={batch}", "ranking.drafts=[{steps: 2, keep: 1}]", "defaults.candidates=2")
    return load("embedded", ["manifest=x", *settings])


@given(st.integers(2, 300), st.integers(1, 100), st.integers(1, 4))
def test_passes_are_durable_of_a_row_that_renders_more_than_a_slice_and_what_they_leave_goes_with_the_shard(
    candidates, start, batch
):
    config = config_of(batch)
    drafts = config.ranking.drafts
    growing = Growing(start=start, max=candidates, until_score=30) if start < candidates else None
    rows = [request("one", steps=4, candidates=candidates), request("two", steps=4, candidates=2, width=128)]
    placed = tuple(Placed(row, replace(one, growing=growing if not row else None)) for row, one in enumerate(rows))
    plan = ShardPlan(0, placed, ((0,), (1,)))
    one, two = units_of(Open(0), plan, config)
    passed = is_long(placed[0].request, batch, drafts)
    assert passed >= (candidates > at_once(placed[0].request, batch))
    assert (one.course is not None and one.course.durable == 0) == passed
    assert two.course is None or two.course.durable is None
    shard = Open(0)
    assert shard.take_in([one, two], {part_name(one.pass_name(0))}, batch) == [one, two]
    assert shard.passing == ({"000000-00000-00000-pass-"} if passed else set())
