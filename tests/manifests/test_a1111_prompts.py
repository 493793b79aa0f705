"""The syntax of stable-diffusion-webui reads as its wiki and the docstrings of its parser state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.manifests.a1111_prompts import MOST_WEIGHT, plain_uses, read, without_loras, words_of
from promptmill.manifests.prompt_errors import PromptError


def fragments(prompt, step=1, steps=10):
    """The texts and weights of a prompt of one part, chunk by chunk; weights as they are printed."""
    (part,) = read(prompt).at(step, steps)
    return [[(text, round(weight, 6)) for text, weight in chunk] for chunk in part.chunks]


# Where a case is of the docstrings, the text is theirs; white space around a fragment says nothing to a tokenizer.
ATTENTION = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an", 1.0), ("important", 1.1), ("word", 1.0)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).)",
        [
            *[("a", 1.0), ("house", 1.573), ("on", 1.0), ("a", 1.1), ("hill", 0.55)],
            *[(", sun,", 1.1), ("sky", 1.4641), (".", 1.1)],
        ],
    ),
    ("a (word:0)", [("a", 1.0), ("word", 0.0)]),
    ("((word))", [("word", 1.21)]),
    ("[word]", [("word", 0.909091)]),
    ("[[word]]", [("word", 0.826446)]),
    ("(a:b:1.3)", [("a:b", 1.3)]),
    ("( a red cat : .5 )", [("a red cat", 0.5)]),
    ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ("[a:b]", [("a:b", 0.909091)]),
    ("a:1.3", [("a:1.3", 1.0)]),
    ("at 10:30, 3:4|x", [("at 10:30, 3:4|x", 1.0)]),
    (r"a \\ b \: c", [(r"a \ b : c", 1.0)]),
    ("", []),
]


@pytest.mark.parametrize(("prompt", "said"), ATTENTION)
def test_weights_are_those_of_the_table(prompt, said):
    assert fragments(prompt) == [said]


PARTS = [
    ("a BREAK b", [(1.0, ["a", "b"])]),
    ("a (b BREAK c:1.2)", [(1.0, ["a b", "c"])]),
    ("a AND b", [(1.0, ["a"]), (1.0, ["b"])]),
    ("a cat :1.2 AND a dog AND a penguin :2.2", [(1.2, ["a cat"]), (1.0, ["a dog"]), (2.2, ["a penguin"])]),
    ("BREAKFAST AND_ BRAND", [(1.0, ["BREAKFAST AND_ BRAND"])]),
]


@pytest.mark.parametrize(("prompt", "said"), PARTS)
def test_break_ends_chunks_and_and_joins_weighted_parts(prompt, said):
    found = [(part.weight, [" ".join(text for text, _ in chunk) for chunk in part.chunks]) for part in read(prompt).at(1, 1)]
    assert found == said


# Ten steps; white space is that of one text.
CHANGES = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a"), (10, "a b")]),
    ("a [b: 3]", [(3, "a"), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a"), (10, "a b")]),
    ("[(a:2):3]", [(3, ""), (10, "a")]),
    ("a [b : c : 1] d", [(1, "a b d"), (10, "a c d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [b:.5] c", [(5, "a c"), (10, "a b c")]),
    ("a [b::.5] c", [(5, "a b c"), (10, "a c")]),
    ("[a|(b:1.1)]", [(step, "ab"[(step - 1) % 2]) for step in range(1, 11)]),
    ("[cow|cow|horse] in a field", [(2, "cow in a field"), (3, "horse in a field"), (5, "cow in a field"), (6, "horse in a field"),
     (8, "cow in a field"), (9, "horse in a field"), (10, "cow in a field")]),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "said"), CHANGES)
def test_words_change_at_the_steps_of_the_table(prompt, said):
    assert [(end, " ".join(part.words for part in parts)) for end, parts in read(prompt).states(10)] == said


def test_the_example_of_the_parser_changes_as_its_comment_says():
    prompt = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
        "[ in background:0.25] [shoddy:masterful:0.5]"
    )
    assert [(end, parts[0].words) for end, parts in read(prompt).states(100)] == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


WORDS = [
    ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).)", "a house on a hill, sun, sky."),
    (r"a smile \(:", "a smile (:"),
    ("a [cat:dog:0.5] BREAK b AND c:0.5", "a dog b c"),
    ("a [red|blue] cat", "a red blue cat"),
    ("[cat:dog:19] [a::20]", "dog a"),
    ("[cat:dog:20] [cat:dog:100] [b:0.9] [a::0.9]", "cat cat b"),
]


@pytest.mark.parametrize(("prompt", "words"), WORDS)
def test_words_have_neither_brackets_nor_weights(prompt, words):
    assert words_of(prompt, 20) == words
    if "|" not in prompt:  # these are the words of all steps
        assert " ".join(part.words for part in read(prompt).at(20, 20)) == words


BAD = [
    ("a (b", "column 3: ( is not closed"),
    ("a b)", "column 4: ) closes no bracket"),
    ("[a", "column 1: [ is not closed"),
    ("a (b] c", "column 5: ] where ) would close"),
    ("(a:99)", f"column 1: a weight of 99; weights are in 0 … {MOST_WEIGHT:g}"),
    ("(a:-1)", f"column 1: a weight of -1; weights are in 0 … {MOST_WEIGHT:g}"),
    ("x ((a:5):5)", f"column 4: a weight of 25; weights are in 0 … {MOST_WEIGHT:g}"),
    ("(a AND b)", "column 4: AND within brackets; it joins whole prompts"),
    ("(" * 99, "column 41: more than 40 brackets within each other"),
    ("a BREAK " * 40, "BREAK and AND make more than 32 parts"),
]


@pytest.mark.parametrize(("prompt", "says"), BAD)
def test_a_prompt_that_cannot_be_read_is_one_line_with_the_column(prompt, says):
    with pytest.raises(PromptError) as caught:
        read(prompt)
    assert str(caught.value) == says


LORAS = [
    ("a cat <lora:style:0.5>", "a cat", [("style", 0.5, 7)]),
    ("<lora:a> b <LORA:c:-1>", "b", [("a", 1.0, 1), ("c", -1.0, 12)]),
    ("<lora:a:0.5:0.5>", "", [("a", 0.5, 1)]),
    ("a <b> <i:c>", "a <b> <i:c>", []),
]


@pytest.mark.parametrize(("prompt", "rest", "loras"), LORAS)
def test_tags_of_loras_are_taken_out(prompt, rest, loras):
    found, tags = without_loras(prompt)
    assert (found, [(lora.name, lora.scale, column) for lora, column in tags]) == (rest, loras)


@pytest.mark.parametrize(
    "prompt",
    ["<lora:>", "<lora:a:b>", "<lora:a:1:2>", "<lora:a:99>", "<lora:a:1> <lora:a:1>", "<hypernet:a:1>", f"<lora:{'x' * 300}>"],
)
def test_a_tag_that_cannot_be_read_is_one_line_with_the_column(prompt):
    with pytest.raises(PromptError, match=r"^column \d+: .+") as caught:
        without_loras(prompt)
    assert "\n" not in str(caught.value)


SIGNS = st.text("ab :|.0123456789()[]\\<>,\n" + "é", max_size=60) | st.lists(
    st.sampled_from(["(", ")", "[", "]", ":", "|", "1.2", "0.5", " BREAK ", " AND ", "cat", "\\", "<lora:a:1>", "3"]), max_size=25
).map("".join)


def outcome(text):
    """The prompt that a text is read as and no words, or None and the words of the one error."""
    try:
        return read(text), ""
    except PromptError as error:
        return None, str(error)


@given(SIGNS | st.text(max_size=60))
def test_any_text_reads_or_raises_the_one_error(text):
    prompt, said = outcome(text)
    if prompt is None:
        assert said and "\n" not in said
        assert words_of(text, 7) == text
        return
    for _, parts in prompt.states(7):
        for part in parts:
            assert all(0 <= weight <= 10 * 1.0000001 and words.strip() == words for chunk in part.chunks for words, weight in chunk)
    assert not set(prompt.words(7)) - set(text) - {" "}


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"]), max_size=30))
def test_escaped_signs_are_words(text):
    escaped = "".join(f"\\{sign}" if sign in "()[]\\" else sign for sign in text)
    prompt = read(escaped)
    assert prompt.words(7) == (text if text not in ("BREAK", "AND") else "") or " " in prompt.words(7)
    assert plain_uses(prompt).weights is None


LONG = ("(" * 10_000, ")" * 10_000, "[a|" * 3_000, "a:" * 5_000, "(a:1)" * 2_000, "\\" * 9_999, "AND " * 2_500)


@pytest.mark.parametrize("text", LONG)
def test_a_strangers_prompt_ends_soon(text):
    # What grows with the square of the text would take minutes, and the session's limit would end it.
    for _ in range(20):
        read.cache_clear()
        words_of(text, 20)
