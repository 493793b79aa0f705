"""Requests whose passes are durable: however often runs are killed, every byte is that of the request that was not."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.configs.parameters import Growing
from promptmill.pipelines.scoring.durable_passes import finish_durably, resumed
from promptmill.pipelines.scoring.finishing import Onward
from promptmill.pipelines.work.passes import begin
from promptmill.shards.parts import PartError, part_name, write_part
from tests.pipelines.work.courses import take
from tests.pipelines.work.test_joined_slices import (
    FINGERPRINT,
    MOST,
    RANKINGS,
    candidates,
    plainly,
    recipe_of,
    rendered,
    said_of,
    scorers_of,
    uncut_of,
)


def until_killed(output, unit, said, recipe, most, lives, seen):
    """Take a request through passes that are durable, as runs do that are killed; returns the rows of its end.

    Args:
        lives: How many passes each run gets through before it is killed; the run behind these is not.
        seen: Is told the candidates of each pass that is rendered, and the course it is of.
    """
    recipe = replace(recipe, output=str(output), fingerprint=FINGERPRINT)
    ranking, (placed,) = recipe.config.ranking, unit.requests
    for life in [*lives, None]:
        course = begin({placed.row: placed.request}, ranking.drafts, ranking.diversity, lambda request: most)
        there = {path.name for path in (output / "parts").glob("*")}
        one = resumed(replace(unit, course=replace(course, durable=0)), there, recipe)
        while life is None or life > 0:
            made = rendered(one, said)
            seen(one.course, [candidate.index for candidate in made.outcomes[0].candidates])
            finished = finish_durably(one, made, scorers_of(said, recipe), recipe, list)
            if not isinstance(finished, Onward):
                return finished.rows
            assert finished.waiting is None, "what is durable waits nowhere else"
            one, life = replace(one, course=finished.course), life if life is None else life - 1
        # The next run begins with nothing but the parts.
    raise AssertionError


DRAFTS = ("ranking.drafts=[{steps: 2, keep: 3}]", "defaults.candidates=9", "defaults.steps=3")


@settings(max_examples=120)
@given(
    said=st.lists(candidates(), min_size=2, max_size=MOST),
    keep=st.integers(1, 3),
    at_a_time=st.none() | st.integers(1, 4),
    most=st.integers(1, 4),
    ranking=st.sampled_from(RANKINGS),
    drafted=st.booleans(),
    embeddings=st.sampled_from(["kept", "all"]),
    lives=st.lists(st.integers(0, 4), max_size=4),
)
def test_however_often_runs_are_killed_between_passes_the_part_is_that_of_the_whole_and_no_pass_is_rendered_twice(
    tmp_path_factory, said, keep, at_a_time, most, ranking, drafted, embeddings, lives
):
    output = tmp_path_factory.mktemp("killed")
    recipe = recipe_of(f"shards.embeddings={embeddings}", *ranking, *(DRAFTS if drafted else ()))
    grows = at_a_time is not None and at_a_time < len(said)
    growing = Growing(start=at_a_time, max=len(said), until_score=21) if grows else None
    unit = uncut_of(said, min(keep, len(said)), growing=growing)
    if begin({5: unit.requests[0].request}, recipe.config.ranking.drafts) is None:
        return
    whole, _ = take(lambda unit: rendered(unit, said), unit, recipe, scorers_of(said, recipe))
    passes = []
    rows = until_killed(output, unit, said, recipe, most, lives, lambda course, some: passes.append((course.durable, some)))
    for name, made in (("whole", whole), ("killed", rows)):
        write_part(str(output), f"{name}.parquet", made, recipe.form, FINGERPRINT)
    assert (output / "parts/killed.parquet").read_bytes() == (output / "parts/whole.parquet").read_bytes()
    # Runs are killed between passes here, so each is rendered once, and in its order.
    assert [number for number, _ in passes] == list(range(len(passes)))
    assert max(len(some) for _, some in passes) <= most


def drafted_half_way(output, lives=(4,)):
    """Return the recipe, the candidates and the unit of a drafted request; four of its passes, of two candidates, are durable."""
    recipe, said, seen = recipe_of(*DRAFTS), plainly(9), []
    unit = uncut_of(said, 2)
    try:
        until_killed(output, unit, said, recipe, 2, lives, lambda course, some: seen.append(some) or 1 / (len(seen) <= sum(lives)))
    except ZeroDivisionError:
        return recipe, said, unit
    raise AssertionError("went on to its end")


def test_what_a_text_encoder_lost_is_known_behind_a_pass_that_was_read(tmp_path):
    recipe, _, unit = drafted_half_way(tmp_path)
    recipe = replace(recipe, output=str(tmp_path), fingerprint=FINGERPRINT)
    course = begin({placed.row: placed.request for placed in unit.requests}, recipe.config.ranking.drafts, None, lambda request: 2)
    there = {path.name for path in (tmp_path / "parts").glob("*")}
    one = resumed(replace(unit, course=replace(course, durable=0)), there, recipe)
    assert [standing.outcome.tokens_lost for standing in one.course.standings.values()] == [23]


def test_a_broken_part_of_a_pass_is_deleted_with_those_behind_it_and_what_is_before_it_stays(tmp_path):
    recipe, said, unit = drafted_half_way(tmp_path)
    there = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert there == [f"000003-00007-00005-pass-{number:04d}.parquet" for number in range(4)]
    broken = tmp_path / "parts" / there[2]
    broken.write_bytes(broken.read_bytes()[:-9])
    passes = []
    rows = until_killed(tmp_path, unit, said, recipe, 2, [0], lambda course, some: passes.append((course.durable, some)))
    assert passes[:2] == [(2, [4, 5]), (3, [6, 7])]
    whole, _ = take(lambda unit: rendered(unit, said), unit, recipe, scorers_of(said, recipe))
    assert [said_of(row) for row in rows] == [said_of(row) for row in whole]


def test_parts_of_passes_that_were_cut_otherwise_or_of_another_request_are_not_taken_for_those_of_a_course(tmp_path):
    recipe, said, unit = drafted_half_way(tmp_path)
    passes = []
    rows = until_killed(tmp_path, unit, said, recipe, 3, [], lambda course, some: passes.append((course.durable, some)))
    assert passes[0] == (0, [0, 1, 2])
    whole, _ = take(lambda unit: rendered(unit, said), unit, recipe, scorers_of(said, recipe))
    assert [said_of(row) for row in rows] == [said_of(row) for row in whole]
    # Nor a part that is whole and says something else than a pass of this request does.
    other = replace(unit, requests=(replace(unit.requests[0], row=6),))
    until_killed(tmp_path, other, said, recipe, 2, [], lambda course, some: None)
    place, course = tmp_path / "parts" / part_name(unit.pass_name(0)), begin({5: unit.requests[0].request}, *drafts_of(recipe))
    place.write_bytes((tmp_path / "parts" / part_name(other.pass_name(0))).read_bytes())
    one = replace(unit, course=replace(course, durable=0))
    assert resumed(one, {place.name}, replace(recipe, output=str(tmp_path), fingerprint=FINGERPRINT)) == one
    assert not place.exists() and (tmp_path / "parts" / part_name(other.pass_name(0))).exists()


def drafts_of(recipe):
    return recipe.config.ranking.drafts, None, lambda request: 2


@pytest.mark.parametrize("ending", [".parquet", "-images.parquet"])
@pytest.mark.parametrize("cut", [True, False])
def test_at_the_end_a_part_that_is_broken_or_gone_is_named_and_the_next_run_renders_from_there(tmp_path, ending, cut):
    recipe, said = recipe_of(), plainly(9)
    unit = uncut_of(said, 2, growing=Growing(start=2, max=9, until_score=99))
    place = tmp_path / "parts" / f"000003-00007-00005-pass-0002{ending}"

    def breaking(course, some):
        if course.durable == 4:
            place.write_bytes(place.read_bytes()[:-9]) if cut else place.unlink()

    with pytest.raises(PartError, match="run again, and what it held is rendered again") as raised:
        until_killed(tmp_path, unit, said, recipe, 2, [], breaking)
    assert "\n" not in str(raised.value) and (not cut or place.name in str(raised.value))
    passes = []
    rows = until_killed(tmp_path, unit, said, recipe, 2, [], lambda course, some: passes.append(course.durable))
    assert passes[0] == (0 if ending == "-images.parquet" and not cut else 2)
    whole, _ = take(lambda unit: rendered(unit, said), unit, recipe, scorers_of(said, recipe))
    assert [said_of(row) for row in rows] == [said_of(row) for row in whole]
