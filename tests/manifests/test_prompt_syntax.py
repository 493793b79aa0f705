"""What other tools read in a prompt is told by `plan`, and plain words are not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.manifests.a1111_prompts import words_of
from promptmill.manifests.prompt_syntax import LEFT, NOTES, notes_on, notes_on_signs

SYNTAX = {
    "option": ["--seed 5", "# a comment", "// a comment", "--n 4 a cat"],
    "lora": ["a cat <lora:style:0.5>", "<lora:a>"],
    "weight": ["a (red:1.3) cat", "(a red cat : 0.7)", "a ((red:1.2) cat)", "(a:1)"],
    "choice": ["a {red|blue} cat", "{2$$a|b|c}", "a {0.3::red|blue} cat", "{|a}"],
    "wildcard": ["a __colour__ cat", "__animals/small*__", "in __art-style__"],
    "schedule": ["a [red:blue:0.5] cat", "[:a hat:10]", "[a hat::3]", "a [red:10] cat"],
    "turns": ["a [red|blue] cat", "[a|b|c:3]"],
    "emphasis": ["a ((red)) cat", "((a))"],
    "variable": ["${x=red} a cat", "a ${x} cat"],
    "parts": ["a cat BREAK a dog", "a cat AND a dog", "BREAK"],
}
PLAIN = [
    "a cat (red)",
    "a cat: red, blue and green",
    "salt and pepper",
    "a scene at 10:30",
    "a sign that says [open]",
    "snake_case and __dunder",
    "a brand name, BRAND ANDES",
    "f(x) = {x}",
    "an A|B switch",
    "ratio (3:4 format)",
    "a - b -- c # d",
    "",
]


@pytest.mark.parametrize(("kind", "prompt"), [(kind, prompt) for kind, some in SYNTAX.items() for prompt in some])
def test_the_syntax_of_other_tools_is_told_by_its_kind(kind, prompt):
    has, instead = NOTES[kind]
    assert notes_on(prompt) == (f"prompt: {has}, which is rendered as words; {instead}",)


def test_each_kind_is_told_and_the_column():
    notes = notes_on("a (red:1.2) cat <lora:foo:0.7> [x|y]", "negative_prompt")
    assert [note.split(",")[0] for note in notes] == [
        f"negative_prompt: {NOTES[kind][0].split(',')[0]}" for kind in ("weight", "lora", "turns")
    ]


TYPED = {
    "[red:blue:x]": "colon",
    "a (red:1,3) cat": "colon",
    "(red:)": "colon",
    "x::red": "signs",
    "2$red": "signs",
    "<lora:x circle": "signs",
    "__colours circle": "signs",
}


@pytest.mark.parametrize(("prompt", "kind"), TYPED.items())
def test_what_typing_errors_leave_is_told(prompt, kind):
    assert notes_on_signs(prompt, words_of(prompt, 20)) == (f"prompt: {LEFT[kind]}, and is rendered as words",)


@pytest.mark.parametrize(
    "prompt", ["a (red:1.3) cat", "[a:b:0.5] [b:10] [a::10]", "a title: words", "(a:b:0.5)", r"\(a:b\)", "5 $", "a_b"]
)
def test_what_is_read_leaves_nothing_to_tell(prompt):
    assert notes_on_signs(prompt, words_of(prompt, 20)) == ()


@pytest.mark.parametrize("prompt", PLAIN)
def test_plain_words_are_no_syntax(prompt):
    assert notes_on(prompt) == ()


@given(st.text(st.characters(exclude_characters="<({[_-#/BA", exclude_categories=["Cs"]), max_size=200))
def test_a_prompt_without_the_signs_of_syntax_has_no_note(prompt):
    assert notes_on(prompt) == ()


INSIDE = [one for some in SYNTAX.values() for one in some if one[0] not in "-#/"]


@given(st.text(max_size=50), st.text(max_size=50), st.sampled_from(INSIDE))
def test_syntax_is_found_wherever_it_stands(before, behind, syntax):
    assert notes_on(f"{before} {syntax} {behind}")


@pytest.mark.parametrize("sign", ["(", "{", "[:", "__", "(a:", "{|", "__a", ":", "(:"])
def test_a_long_prompt_of_brackets_is_read_in_time(sign):
    started = time.thread_time()
    notes_on(sign * 5_000)
    assert time.thread_time() - started < 1  # takes some hundredths; what grows with the square takes much longer
