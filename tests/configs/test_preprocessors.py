import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.preprocessors import PREPROCESSORS, parse_preprocess, preprocess_name


@st.composite
def asked(draw):
    """How a manifest may ask for a map, and what it means."""
    name = draw(st.sampled_from(sorted(PREPROCESSORS)))
    known = PREPROCESSORS[name]
    said = {}
    for key in draw(st.permutations(sorted(known))):
        one = known[key]
        if draw(st.booleans()):
            said[key] = draw(st.integers(int(one.least), int(one.most)) if one.whole else st.floats(one.least, one.most))
    meant = {key: said.get(key, one.default) for key, one in known.items()}
    if name == "canny" and meant["low"] > meant["high"]:
        said = {"low": 5, "high": 9}
        meant = dict(said)
    space = draw(st.sampled_from(["", " "]))
    inside = f",{space}".join(f"{space}{key}{space}={value!r}" for key, value in said.items())
    return f"{space}{name}" + (f"({inside}{space})" if said or draw(st.booleans()) else ""), name, meant


@given(asked())
def test_every_spelling_is_read_as_meant_and_becomes_one_spelling_that_says_the_same(drawn):
    text, name, meant = drawn
    assert parse_preprocess(text) == (name, meant)
    said = preprocess_name(text)
    assert parse_preprocess(said) == (name, meant) and preprocess_name(said) == said
    assert " =" not in said and (said == name) == (meant == {key: one.default for key, one in PREPROCESSORS[name].items()})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hough", "'hough' is not known; there are none, canny, "),
        ("cany", "'cany' is not known; did you mean 'canny'?; there are"),
        ("", "'' is neither a name nor name(parameter=value, ...)"),
        ("canny(", "'canny(' is neither a name nor"),
        ("canny(low=1", "'canny(low=1' is neither"),
        ("canny(lo=1)", "'lo=1' is no parameter of canny; did you mean 'low'?; canny has low, high"),
        ("canny(50)", "'50' is no parameter of canny; canny has low, high"),
        ("grey(low=1)", "'low=1' is no parameter of grey; grey has no parameters"),
        ("canny(low=1, low=2)", "low is given twice"),
        ("canny(low=201)", "canny's low 201 is above its high 200"),
        ("canny(low=1.5)", "canny's low is a whole number from 0 to 2000, not '1.5'"),
        ("canny(low=-1)", "canny's low is a whole number from 0 to 2000, not '-1'"),
        ("tile(rate=0)", "tile's rate is a whole number from 1 to 64, not '0'"),
        ("blur(sigma=nan)", "blur's sigma is a number from 0.001 to 0.25, not 'nan'"),
        ("blur(sigma=inf)", "not 'inf'"),
        ("blur(sigma=)", "not ''"),
        ("sam(points=65)", "sam's points is a whole number from 1 to 64, not '65'"),
        ("sam(iou=1.1)", "sam's iou is a number from 0 to 1, not '1.1'"),
        ("shuffle(seed=4294967296)", "shuffle's seed is a whole number from 0 to 4294967295, not"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text, says):
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        preprocess_name(text)
    assert len(str(raised.value).splitlines()) == 1


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text):
    said = "one line"
    try:
        assert preprocess_name(text)
    except ValueError as error:
        said = str(error)
    assert len(said.splitlines()) == 1
