"""How rows say what is changed of a mask, and by how much a picture is widened: one spelling, and one line for what is wrong."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.mask_edits import (
    MAX_BLUR,
    MAX_GROW,
    MaskEdit,
    Outpaint,
    mask_edit_text,
    outpaint_text,
    parse_mask_edit,
    parse_outpaint,
)

GROW, BLUR = st.integers(-MAX_GROW, MAX_GROW), st.integers(0, MAX_BLUR)
EDITS = st.builds(MaskEdit, st.booleans(), GROW, BLUR) | st.builds(
    MaskEdit, st.booleans(), GROW, BLUR, only_masked=st.just(True), padding=st.integers(0, MAX_GROW)
)
SIDE = st.integers(0, 8192)
SIDES = st.builds(Outpaint, SIDE, SIDE, SIDE, SIDE, st.integers(0, MAX_GROW)).filter(
    lambda sides: sides.left or sides.top or sides.right or sides.bottom
)


@given(EDITS, st.randoms(use_true_random=False))
def test_a_change_of_a_mask_has_one_spelling_however_it_is_written(edit, order: random.Random):
    parts = [name for name in ("invert", "only_masked") if getattr(edit, name)] + [f" grow = {edit.grow}", f"blur={edit.blur} "]
    parts += [f"padding={edit.padding}"] if edit.only_masked else []
    order.shuffle(parts)
    written = mask_edit_text(", ".join(parts))
    assert parse_mask_edit(written) == edit
    values = {name: value for name, value in vars(edit).items() if name != "padding" or edit.only_masked}
    assert written == mask_edit_text(values) == mask_edit_text(written)
    assert (written is None) == (edit == MaskEdit())


@given(SIDES, st.randoms(use_true_random=False))
def test_widened_sides_have_one_spelling_however_they_are_written(sides, order: random.Random):
    parts = list(vars(sides).items())
    order.shuffle(parts)
    written = outpaint_text(", ".join(f"{name}={value}" for name, value in parts))
    assert parse_outpaint(written) == sides
    assert written == outpaint_text(dict(parts)) == outpaint_text(written)


def test_an_object_without_a_value_says_nothing():
    assert mask_edit_text({"invert": None, "grow": None}) is None and mask_edit_text(None) is None
    assert outpaint_text({"left": None, "top": None}) is None and outpaint_text(None) is None


WRONG = {
    "grown=3": "'grown' is not known; did you mean 'grow'?; there are invert, grow, blur, only_masked, padding",
    "grow": "grow is a whole number of pixels from -1,024 to 1,024, and has none here",
    "grow=x": "not 'x'",
    "grow=1.5": "not '1.5'",
    "grow=1025": "not '1025'",
    "blur=-1": "blur is a whole number of pixels from 0 to 256, not '-1'",
    "invert=1": "invert has no value; write invert, or leave it out",
    "grow=1, grow=2": "grow is given twice",
    "padding=8": "padding goes with only_masked; without it the whole picture is rendered",
    "grow=1,,blur=2": "'' is not known",
}


@pytest.mark.parametrize(("said", "why"), WRONG.items())
def test_a_wrong_change_is_one_line(said, why):
    with pytest.raises(ValueError, match=re.escape(why)) as error:
        parse_mask_edit(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("said", [7, [1], {"grow": True}, {"grow": 1.5}, {"grow": float("inf")}, {"grow": [1]}, {"invert": 1}])
def test_a_change_of_another_type_is_one_line(said):
    with pytest.raises(ValueError, match=r"whole number of pixels|input should be a text|invert has no value") as error:
        mask_edit_text(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("said", ["", {}, "left=0, overlap=3", {"left": 0}])
def test_sides_of_which_none_is_widened_are_refused_or_say_nothing(said):
    if said == {}:
        assert outpaint_text(said) is None
        return
    with pytest.raises(ValueError, match="widens no side, so that nothing is repainted"):
        outpaint_text(said)
