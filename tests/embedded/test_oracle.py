import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from promptmill.embedded.oracle import differences, is_right, read
from promptmill.embedded.pictures import RGB, draw
from promptmill.embedded.world import PromptError, describe, edits, parse, sample_scene

PROMPT = "a small red circle at the left and a large blue square at the right on a yellow background"
seeds = st.integers(0, 2**32 - 1)


def picture_of(prompt, seed=0):
    return draw([parse(prompt)], np.random.default_rng(seed)).pixels[0]


def test_it_reads_at_least_995_in_1000_drawn_pictures_right():
    rng = np.random.default_rng(123)
    scenes = [sample_scene(rng) for _ in range(1000)]
    pixels = draw(scenes, rng).pixels
    assert sum(is_right(describe(s), p) for s, p in zip(scenes, pixels, strict=True)) >= 995


@settings(max_examples=50)
@given(seeds)
def test_a_picture_is_wrong_under_every_edit_of_its_prompt(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    picture = read(draw([scene], rng).pixels[0])
    for edit in edits(scene):
        assert differences(edit, picture), describe(edit)


@pytest.mark.parametrize(
    ("drawn", "says"),
    [
        (PROMPT.replace("red circle", "red square"), ["circle at the left: shape is square, not circle"]),
        (PROMPT.replace("small red", "small green"), ["circle at the left: colour is green, not red"]),
        (PROMPT.replace("small red", "large red"), ["circle at the left: size is large, not small"]),
        (PROMPT.replace("yellow background", "white background"), ["background: white, not yellow"]),
        ("a small red circle at the left on a yellow background", ["missing: a large blue square at the right"]),
        ("a large blue square at the right on a yellow background", ["missing: a small red circle at the left"]),
    ],
)
def test_it_says_what_is_wrong_and_nothing_else(drawn, says):
    assert differences(PROMPT, picture_of(drawn)) == says


def test_it_says_where_an_object_is_that_should_be_elsewhere():
    wrong = differences(
        "a small red circle at the top on a yellow background", picture_of("a small red circle at the left on a yellow background")
    )
    assert wrong == ["circle at the top: place is the left, not the top"]


def test_exchanged_colours_are_told_from_exchanged_places():
    wrong = differences(PROMPT, picture_of(PROMPT.replace("red", "tmp").replace("blue", "red").replace("tmp", "blue")))
    assert wrong == ["circle at the left: colour is blue, not red", "square at the right: colour is red, not blue"]


def test_an_extra_object_is_named():
    picture = picture_of("a small red circle at the left on a yellow background")
    picture[40:54, 40:54] = RGB["black"]
    wrong = differences("a small red circle at the left on a yellow background", picture)
    assert len(wrong) == 1 and wrong[0].startswith("extra: a small black square at (0.7")


def test_a_colour_of_no_name_is_given_in_numbers():
    picture = picture_of("a large red circle at the left on a yellow background")
    picture[(np.abs(picture.astype(int) - RGB["red"]).max(2) <= 12)] = (120, 200, 200)
    wrong = differences("a large red circle at the left on a yellow background", picture)
    assert wrong == ["circle at the left: colour is nothing with a name, rgb(120, 200, 200), not red"]


def test_a_misshapen_object_is_none_of_the_four():
    picture = picture_of("a large red square at the center on a yellow background")
    picture[32:46, 32:46] = picture[0, 0]
    wrong = differences("a large red square at the center on a yellow background", picture)
    assert wrong == ["square at the center: shape is none of the four, not square"]


def test_a_background_that_is_not_plain_is_said():
    picture = picture_of("a large red square at the center on a yellow background")
    picture[:, :20] = RGB["black"]
    assert differences("a large red square at the center on a yellow background", picture)[0].startswith(
        "background: nothing with a name"
    )


SQUARE = "a large red square at the center on a white background"


def test_a_rain_of_specks_is_no_plain_picture():
    picture = picture_of(SQUARE)
    for x in range(4, 60, 8):
        picture[6:9, x : x + 3] = picture[54:57, x : x + 3] = 0
    assert any(line.startswith("extra: specks") for line in differences(SQUARE, picture))


def test_a_ghost_beside_the_object_is_no_plain_background():
    picture = picture_of(SQUARE)
    picture[4:60, 3:9] -= 27
    assert differences(SQUARE, picture)[0].startswith("background: nothing with a name")


def test_an_object_of_two_colours_has_none():
    picture = picture_of(SQUARE)
    picture[22:32, 22:42] = 0
    assert any("colour is nothing with a name" in line for line in differences(SQUARE, picture))


def test_an_empty_and_a_noise_picture_are_wrong_for_the_right_reason():
    empty = np.full((64, 64, 3), RGB["yellow"], np.uint8)
    assert differences("a small red circle at the left on a yellow background", empty) == [
        "missing: a small red circle at the left"
    ]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert any(
        line.startswith("background") for line in differences("a small red circle at the left on a yellow background", noise)
    )


@settings(max_examples=50)
@given(seeds)
def test_mild_noise_and_blur_change_no_reading(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    picture = draw([scene], rng).pixels[0].astype(float)
    worn = ndimage.gaussian_filter(picture, (0.5, 0.5, 0)) + rng.normal(0, 4, picture.shape)
    assert differences(scene, np.clip(worn, 0, 255).astype(np.uint8)) == []


def test_what_a_prompt_leaves_unsaid_may_be_anything():
    assert is_right("a red circle and a blue square on a yellow background", picture_of(PROMPT))
    assert not is_right("a red circle and a green square on a yellow background", picture_of(PROMPT))


def test_a_prompt_out_of_the_world_is_an_error_before_any_reading():
    with pytest.raises(PromptError, match="'pink'"):
        differences("a small pink circle at the left on a green background", picture_of(PROMPT))


@pytest.mark.parametrize("bad", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8)])
def test_a_picture_of_another_form_is_refused(bad):
    with pytest.raises(ValueError, match=r"\(64, 64, 3\) uint8"):
        read(bad)
