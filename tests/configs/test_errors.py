"""What is shown of a stranger's text: on one line, and nothing in it steers a terminal."""

import json

from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.errors import UNSAFE, escaped, quoted, shown

HOSTILE = "\x1b[31m\x07a\nb\r\u202e\u2028\x9b\x7f\ud800\U000e0041"
ANY = st.text(st.characters(exclude_categories=()))


@given(ANY)
def test_no_text_keeps_a_control_a_line_end_or_what_turns_a_line_around(text):
    for said in (escaped(text), shown(text), quoted(text)):
        assert not UNSAFE.search(said)
        said.encode()


@given(ANY)
def test_a_line_of_json_stays_one_with_the_same_value(text):
    assert json.loads(escaped(json.dumps({"a": text}))) == {"a": text}


def test_each_kind_of_hostile_character_is_an_escape():
    assert escaped(HOSTILE) == "\\u001b[31m\\u0007a\\nb\\r\\u202e\\u2028\\u009b\\u007f\\ud800\\udb40\\udc41"


def test_what_languages_and_emoji_need_stays():
    kept = "naïve “cat” 猫 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680 a\u00a0b\u00ad"
    assert escaped(kept) == shown(kept) == kept
