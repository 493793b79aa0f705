import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.embedded.weights import WEIGHTS
from promptmill.embedded.world import (
    COLORS,
    FORM,
    OPPOSITE,
    PLACES,
    SHAPES,
    SIZES,
    PromptError,
    describe,
    edits,
    is_held_out,
    parse,
    prompt_pattern,
    sample_scene,
    without,
)

seeds = st.integers(0, 2**32 - 1)


def scene_of(seed, **options):
    return sample_scene(np.random.default_rng(seed), **options)


@given(seeds)
def test_a_prompt_reads_back_as_its_scene(seed):
    scene = scene_of(seed)
    assert parse(describe(scene)) == scene


@given(seeds)
def test_what_goes_unsaid_reads_back_as_unsaid(seed):
    said_less = without(scene_of(seed), "size", "place")
    assert parse(describe(said_less)) == said_less
    assert "small" not in describe(said_less) and " at the " not in describe(said_less)


def test_prompts_are_word_for_word_those_of_the_design():
    one = "a small red circle at the left on a green background"
    two = "a large orange cross at the top and a small white triangle at the bottom on a black background"
    assert describe(parse(one)) == one
    assert describe(parse(two)) == two


@given(seeds)
def test_scenes_obey_the_rules_of_the_world(seed):
    scene = scene_of(seed)
    assert all(thing.color != scene.background for thing in scene.things)
    if len(scene.things) == 2:
        first, second = scene.things
        assert OPPOSITE[first.place] == second.place


@given(seeds)
def test_the_same_seed_draws_the_same_scene(seed):
    assert scene_of(seed) == scene_of(seed)


@given(seeds, st.sampled_from([1, 2]))
def test_training_and_evaluation_share_no_scene_in_any_naming_order(seed, things):
    seen, unseen = scene_of(seed, things=things), scene_of(seed, things=things, held_out=True)
    for order in itertools.permutations(unseen.things):
        assert is_held_out(type(unseen)(order, unseen.background))
    assert not is_held_out(seen)


@given(seeds)
def test_edits_are_valid_distinct_and_change_one_attribute(seed):
    scene = scene_of(seed)
    changed = list(edits(scene))
    assert len(set(changed)) == len(changed) and scene not in changed
    for edit in changed:
        assert parse(describe(edit)) == edit
        words, edited = describe(scene).split(), describe(edit).split()
        different = sum(a != b for a, b in zip(words, edited, strict=True))
        # Of two objects neither can move without the other, so an arrangement changes two words.
        assert different == 1 or (different == 2 and [t.place for t in edit.things] != [t.place for t in scene.things])


def test_a_single_object_has_every_edit_there_is():
    scene = parse("a small red circle at the left on a green background")
    # 1 size + 6 colours + 3 shapes + 4 places + 6 backgrounds
    assert len(list(edits(scene))) == 20


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a small pink circle at the left on a green background", "'pink' (word 3) where a colour (red"),
        ("a huge red circle at the left on a green background", "'huge' (word 2) where a size or colour"),
        ("a small red hexagon at the left on a green background", "'hexagon' (word 4) where a shape"),
        ("a small red circle at the edge on a green background", "'edge' (word 7) where a place"),
        ("a small red circle at the left on a green", "found the end where 'background' belongs"),
        ("a small red circle at the left on a green background please", "'please' (word 12) where nothing more belongs"),
        ("", "found the end where 'a' belongs"),
        ("a small red circle at the left on a red background", "is red on a red background; give it another colour"),
        (
            "a small red circle at the left and a small blue cross at the top on a green background",
            "two objects stand left and right, or top and bottom, not left and top",
        ),
        ("a small red circle at the left an a small blue", "'an' (word 8) where 'on' belongs"),
    ],
)
def test_a_malformed_prompt_says_which_word_and_what_would_do(prompt, says):
    with pytest.raises(PromptError) as caught:
        parse(prompt)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_colours_serve_as_backgrounds():
    drawn = {scene_of(seed).background for seed in range(200)}
    assert drawn == set(COLORS)


WORDS = st.sampled_from([*SIZES, *COLORS, *SHAPES, *PLACES, "a", "at", "the", "on", "and", "background", "cat"])


@given(seeds, st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.lists(WORDS, max_size=2)), max_size=3))
def test_the_pattern_matches_exactly_the_prompts_that_can_be_read(seed, changes):
    scene = scene_of(seed)
    words = describe(scene if seed % 3 else without(scene, "place")).split()
    for at, dropped, added in changes:
        words[at : at + dropped] = added
    prompt = " ".join(words)
    try:
        parse(prompt)
        can = True
    except PromptError:
        can = False
    assert (re.fullmatch(prompt_pattern(), prompt) is not None) == can


@pytest.mark.parametrize("places", list(itertools.product(["", *PLACES], ["", *PLACES])))
def test_the_pattern_knows_which_places_go_together(places):
    first, second = (f" at the {place}" if place else "" for place in places)
    prompt = f"a red circle{first} and a blue cross{second} on a green background"
    try:
        parse(prompt)
        can = True
    except PromptError:
        can = False
    assert (re.fullmatch(prompt_pattern(), prompt) is not None) == can


def test_the_file_beside_the_weights_says_what_the_world_says():
    for family in ("pipeline", "flow"):
        said = json.loads((WEIGHTS / f"{family}.prompts.json").read_text())
        assert said == {"form": FORM, "pattern": prompt_pattern()}
