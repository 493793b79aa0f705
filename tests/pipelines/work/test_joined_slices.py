"""Requests that are cut into slices, and courses that are cut into more passes: every byte is that of the uncut one."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.actors.receipts import Receipt
from promptmill.configs.loading import load
from promptmill.configs.parameters import Growing
from promptmill.configs.scorers import Diversity
from promptmill.pipelines.scoring.finishing import finish
from promptmill.pipelines.work.joined_slices import join_slices
from promptmill.pipelines.work.metadata_rows import failed_unit, ranking_columns
from promptmill.pipelines.work.passes import begin
from promptmill.pipelines.work.ranking import Look, contenders, decide
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered, Scored
from promptmill.pipelines.work.units import Placed, Unit, at_once, candidate_seed, slices_of
from promptmill.shards.parts import PartError, part_name, write_part
from promptmill.shards.tables import schema
from tests.pipelines.plain import request
from tests.pipelines.work.courses import take

FINGERPRINT = "f" * 64
MOST = 10
SCORERS = "ranking.scorers=[{name: taste, kind: head, source: ./t.safetensors, ceiling: 7}]"
RANKINGS = (
    (),
    ("ranking.min_score=21",),
    (SCORERS, "ranking.weights={clip: 1, taste: 0.1}"),
    ("ranking.diversity={embedding: 0.9}",),
    ("ranking.diversity={embedding: -0.5}", "ranking.min_score=20.5"),
    ("ranking.diversity={hash: 6}",),
    ("ranking.diversity={embedding: 0.8, hash: 6}", SCORERS),
)


@cache
def pictures():
    """Four pictures, each also a little brighter: alike to a hash and its colours."""
    noise = np.random.default_rng(3).integers(0, 250, (4, 16, 16, 3), dtype=np.uint8)
    return [*noise, *(noise + 2)]


@cache
def recipe_of(*said):
    config = load("embedded", ["manifest=x", "shards.quality=50", *said])
    width = None if config.shards.embeddings == "none" else 2
    form = schema({}, width, bool(config.ranking.drafts), True, ranking_columns(config.ranking))
    return Recipe(config, form, "", FINGERPRINT, growing=True)


class Saying:
    """Scores the pictures of `painted` by what their first pixel says."""

    def __init__(self, said):
        self.said = said

    def score(self, prompts, images):
        return [self.said[int(image[0, 0, 0])] for image in images]


@st.composite
def candidates(draw):
    """What becomes of a candidate: a failure, or its picture and its scores, some of which are no number."""
    if draw(st.sampled_from([True, False, False, False, False])):
        return Failure("non_finite", "NaN in the latents")
    angle = math.radians(draw(st.sampled_from([0, 10, 25, 40, 60, 90, 135])))
    clip = draw(st.sampled_from([20.0, 20.0 + 1e-9, 21.0, 22.0]) | st.floats(15, 25))
    taste = draw(st.sampled_from([6.0, 6.5, 7.0, 7.5, math.nan]))
    picture = draw(st.integers(0, 7))
    return picture, Scored(clip, np.array([math.cos(angle), math.sin(angle)], np.float32), {"taste": taste})


def rendered(unit, said):
    """A pass of a unit of one request."""
    ((placed, indices),) = unit.next_pass()
    made = []
    for index in indices:
        seed, what = candidate_seed(0, placed.request, index), said[index]
        if isinstance(what, Failure):
            made.append(Candidate(index, seed, None, 2, what))
        else:
            pixels = pictures()[what[0]].copy()
            pixels[0, 0, 0] = index
            made.append(Candidate(index, seed, pixels, 2))
    return Rendered((Outcome(placed.row, tuple(made), tokens_lost=23),))


def scorers_of(said, recipe):
    named = bool(recipe.config.ranking.scorers)
    return Saying({i: what[1] if named else replace(what[1], others={}) for i, what in enumerate(said) if isinstance(what, tuple)})


def uncut_of(said, keep, **values):
    return Unit(3, 7, (Placed(5, request(candidates=len(said), keep=keep, **values)),))


def slices_at(unit, cuts):
    edges = [0, *sorted(cuts), unit.candidates]
    return [replace(unit, row=5, span=range(first, last)) for first, last in pairwise(edges) if first < last]


def written(output, unit, said, recipe):
    """Finish a unit and write its part; returns the rows and the receipt."""
    finished = finish(unit, rendered(unit, said), scorers_of(said, recipe), recipe)
    write_part(str(output), part_name(unit.name), finished.rows, recipe.form_of(unit), FINGERPRINT)
    return finished.rows, Receipt.of(unit, finished.rows, finished.scores, {})


def part(output, unit):
    return (output / "parts" / part_name(unit.name)).read_bytes()


def joined(output, unit, slices, recipe, fresh=None):
    fresh = [one.name for one in slices] if fresh is None else fresh
    return join_slices(replace(recipe, output=str(output)), unit, slices, fresh)


@settings(max_examples=250)
@given(
    said=st.lists(candidates(), min_size=1, max_size=MOST),
    keep=st.integers(1, MOST),
    cuts=st.sets(st.integers(0, MOST), max_size=4),
    ranking=st.sampled_from(RANKINGS),
    embeddings=st.sampled_from(["kept", "all", "none"]),
)
def test_a_request_that_is_cut_makes_the_part_that_the_whole_makes(tmp_path_factory, said, keep, cuts, ranking, embeddings):
    output, recipe = tmp_path_factory.getbasetemp() / "cut", recipe_of(f"shards.embeddings={embeddings}", *ranking)
    unit = uncut_of(said, keep)
    slices = slices_at(unit, {cut for cut in cuts if cut < len(said)})
    whole_rows, whole = written(output, unit, said, recipe)
    wanted = part(output, unit)
    (output / "parts" / part_name(unit.name)).unlink()
    receipts = [written(output, one, said, recipe)[1] for one in slices]
    end = Receipt.of_joined(unit, joined(output, unit, slices, recipe), {})
    assert part(output, unit) == wanted
    # Every candidate is counted once, and as what it has become.
    for name in ("requests", "kept", "rejected", "failed", "failed_requests"):
        assert sum(getattr(receipt, name) for receipt in (*receipts, end)) == getattr(whole, name), name
    errors = [code for receipt in (*receipts, end) for code, number in receipt.errors.items() for _ in range(number)]
    assert sorted(errors) == sorted(row["error"] for row in whole_rows if row["error"])
    spread = [receipt.scores for receipt in (*receipts, end) if receipt.scores]
    assert (min((low for low, *_ in spread), default=None), max((high for *_, high in spread), default=None)) == (
        (whole.scores[0], whole.scores[2]) if whole.scores else (None, None)
    )


@settings(max_examples=300)
@given(
    said=st.lists(candidates(), min_size=1, max_size=8),
    others=st.lists(candidates(), max_size=8),
    keep=st.integers(1, 5),
    ranking=st.sampled_from(RANKINGS),
    places=st.randoms(use_true_random=False),
)
def test_whatever_the_others_are_none_is_kept_or_compared_that_a_slice_has_ruled_out(said, others, keep, ranking, places):
    ranking = recipe_of(*ranking).config.ranking
    finite = [what for what in (*said, *others) if isinstance(what, tuple) and math.isfinite(what[1].others["taste"])]
    own = [what for what in said if isinstance(what, tuple) and math.isfinite(what[1].others["taste"])]
    order = places.sample(range(len(finite)), len(finite))
    mixed = [finite[place] for place in order]
    # The slice is wherever it is among all, its candidates in their order.
    where = sorted(place for place, one in enumerate(order) if one < len(own))

    def look_of(some):
        return lambda index: Look.of(some[index][1], pictures()[some[index][0]], ranking.diversity)

    slice_ = [mixed[place] for place in where]
    may = contenders([one for _, one in slice_], look_of(slice_), keep, ranking)
    chosen = decide([one for _, one in mixed], look_of(mixed), keep, ranking)
    for at, place in enumerate(where):
        if chosen[place].kept or chosen[place].rejected_for == "near_duplicate":
            assert at in may
    passing = sum(choice.rejected_for not in ("floor_clip", "ceiling_taste") for choice in (chosen[place] for place in where))
    if ranking.diversity is None or keep == 1:
        assert len(may) == min(keep, passing)


def test_with_diversity_as_many_as_are_kept_rule_the_rest_out_where_they_are_far_apart():
    degrees = [0, 20, 90, 110, 180, 10]
    scored = [
        Scored(30.0 - n, np.array([math.cos(math.radians(d)), math.sin(math.radians(d))], np.float32))
        for n, d in enumerate(degrees)
    ]
    ranking = recipe_of("ranking.diversity={embedding: 0.9}").config.ranking
    assert [len(contenders(scored, lambda index: Look(scored[index].embedding), keep, ranking)) for keep in (1, 2, 3, 4)] == [
        1, 3, 5, 6
    ]  # fmt: skip
    near, far = Look(scored[0].embedding), Look(scored[2].embedding)
    assert far.is_far_from(near, Diversity(embedding=0.9))
    assert not far.is_far_from(near, Diversity(embedding=-0.1)), "anything may be like both"
    assert not far.is_far_from(near, Diversity(embedding=0.9, hash=0)), "their hashes are the same"


FAILED = Failure("died", "its process failed each time that it was rendered alone")


def failing(output, unit, failure, recipe):
    rows = failed_unit(recipe, unit, failure)
    write_part(str(output), part_name(unit.name), rows, recipe.form_of(unit), FINGERPRINT)
    return Receipt.of(unit, rows, [], {})


def plainly(count):
    return [(n % 8, Scored(20.0 + n % 5, np.array([1, 0], np.float32), {"taste": 6.0})) for n in range(count)]


def test_a_slice_that_died_fails_its_candidates_and_its_siblings_stay(tmp_path):
    recipe, said = recipe_of(), plainly(9)
    unit = uncut_of(said, 2)
    slices = slices_at(unit, {3, 6})
    receipts = [failing(tmp_path, slices[1], FAILED, recipe), *(written(tmp_path, one, said, recipe)[1] for one in slices[::2])]
    end = Receipt.of_joined(unit, joined(tmp_path, unit, slices, recipe), {})
    made = part(tmp_path, unit)
    # What a unit makes whose candidates fail one by one, but for their price.
    broken = [FAILED if 3 <= n < 6 else what for n, what in enumerate(said)]
    rows, _ = written(tmp_path, unit, broken, recipe)
    for row in rows:
        row["unet_evaluations"] = 0 if row["error"] else row["unet_evaluations"]
    write_part(str(tmp_path), part_name(unit.name), rows, recipe.form, FINGERPRINT)
    assert part(tmp_path, unit) == made
    assert [sum(getattr(one, name) for one in (*receipts, end)) for name in ("kept", "rejected", "failed")] == [2, 4, 3]
    assert (end.errors, end.failed_requests, end.requests) == ({"died": 3}, 0, 1)


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([FAILED, FAILED, FAILED], "died"),
        ([FAILED, None, Failure("bad_image", "init_image: broken")], "bad_image"),
        ([Failure("unreachable", "init_image: no answer"), FAILED, FAILED], "unreachable"),
    ],
)
def test_where_no_slice_gets_through_or_the_request_is_to_blame_it_fails_as_a_whole(tmp_path, failures, code):
    recipe, said = recipe_of(), plainly(9)
    unit = uncut_of(said, 2)
    slices = slices_at(unit, {3, 6})
    receipts = [
        failing(tmp_path, one, failure, recipe) if failure else written(tmp_path, one, said, recipe)[1]
        for one, failure in zip(slices, failures, strict=True)
    ]
    end = Receipt.of_joined(unit, joined(tmp_path, unit, slices, recipe), {})
    made = part(tmp_path, unit)
    failing(tmp_path, unit, next(one for one in failures if one and one.code == code), recipe)
    assert part(tmp_path, unit) == made
    assert (end.errors, end.failed_requests) == ({code: 1}, 1)
    assert sum(one.candidates for one in (*receipts, end)) == 9


def test_what_earlier_runs_have_settled_is_not_counted_again(tmp_path):
    recipe, said = recipe_of(), plainly(9)
    unit = uncut_of(said, 2)
    slices = slices_at(unit, {3, 6})
    receipts = [written(tmp_path, one, said, recipe)[1] for one in slices]
    end = Receipt.of_joined(unit, joined(tmp_path, unit, slices, recipe, fresh=[slices[2].name]), {})
    assert receipts[2].candidates + end.candidates == 3
    assert joined(tmp_path, unit, slices, recipe, fresh=[]).scores == []


def test_a_slice_whose_part_is_gone_or_of_whole_units_is_a_part_error(tmp_path):
    recipe, said = recipe_of(), plainly(6)
    unit = uncut_of(said, 2)
    slices = slices_at(unit, {3})
    for one in slices:
        written(tmp_path, one, said, recipe)
    place = tmp_path / "parts" / part_name(slices[1].name)
    place.unlink()
    with pytest.raises(PartError, match=f"{place.name}: is not there any more"):
        joined(tmp_path, unit, slices, recipe)
    written(tmp_path, unit, said, recipe)
    place.write_bytes(part(tmp_path, unit))
    with pytest.raises(PartError, match="lacks the column"):
        joined(tmp_path, unit, slices, recipe)


@given(st.integers(1, 10_000), st.integers(1, 40), st.integers(1, 64), st.integers(1, 100), st.sampled_from([64, 512, 4096]))
def test_slices_hold_every_candidate_once_and_no_more_than_the_limits(candidates, steps, batch, keep, side):
    one = request(candidates=candidates, steps=steps, keep=min(keep, candidates), width=side, height=side, guidance_scale=1.0)
    unit = Unit(0, 3, (Placed(2, one),))
    slices = unit.slices(batch)
    assert len(slices or [unit]) == slices_of(one, batch, ())
    if slices:
        assert [index for each in slices for index in each.span] == list(range(candidates))
        assert sum(each.candidates for each in slices) == unit.candidates
        assert len({each.name for each in slices}) == len(slices)
        assert all(each.name.startswith("000000-00003-00002-") for each in slices)
        assert all([*next(iter(each.next_pass()))[1]] == [*each.span] for each in slices)
    for each in slices or [unit]:
        assert each.candidates <= at_once(one, batch)
        assert each.candidates * side * side <= 128 * 2**20 or each.candidates == 1
        assert each.candidates * steps <= max(320 * batch, batch * steps, 4 * one.keep * steps)
        assert each.pieces() == [each] and each.slices(batch) == ([] if each.span else slices)


def test_units_of_several_requests_and_of_requests_that_pass_more_than_once_have_no_slices():
    many = request(candidates=1000)
    assert Unit(0, 0, (Placed(0, many), Placed(1, many))).slices(1) == []
    grows = replace(many, growing=Growing(start=4, max=1000, until_score=30))
    assert Unit(0, 0, (Placed(0, grows),), course=begin({0: grows}, ())).slices(1) == []
    drafts = load("embedded", ["manifest=x", "ranking.drafts=[{steps: 2, keep: 1}]", "defaults.candidates=2"]).ranking.drafts
    assert slices_of(grows, 1, ()) == slices_of(many, 1, drafts) == 1


def said_of(row):
    """What is not null of a row, which is what its part has."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items() if value is not None}


@settings(max_examples=150)
@given(
    said=st.lists(candidates(), min_size=2, max_size=MOST),
    keep=st.integers(1, 3),
    at_a_time=st.none() | st.integers(1, 4),
    most=st.integers(1, 4),
    ranking=st.sampled_from(RANKINGS),
    drafted=st.booleans(),
)
def test_a_course_in_more_passes_makes_the_same_rows_and_holds_no_more_than_it_may(said, keep, at_a_time, most, ranking, drafted):
    drafts = ("ranking.drafts=[{steps: 2, keep: 3}]", "defaults.candidates=9", "defaults.steps=3") if drafted else ()
    recipe = recipe_of(*ranking, *drafts)
    grows = at_a_time is not None and at_a_time < len(said)
    growing = Growing(start=at_a_time, max=len(said), until_score=21) if grows else None
    unit = uncut_of(said, min(keep, len(said)), growing=growing)
    if begin({5: unit.requests[0].request}, recipe.config.ranking.drafts) is None:
        return
    sizes = []

    def render(unit):
        made = rendered(unit, said)
        sizes.append(len(made.outcomes[0].candidates))
        return made

    whole, _ = take(render, unit, recipe, scorers_of(said, recipe))
    sizes.clear()
    cut, _ = take(render, unit, recipe, scorers_of(said, recipe), at_once=lambda request: most)
    assert [said_of(row) for row in cut] == [said_of(row) for row in whole]
    assert max(sizes) <= most
