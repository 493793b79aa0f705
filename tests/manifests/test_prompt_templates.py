"""Rows whose prompts are templates become the rows of what these expand to, and bad ones a line with the column of the sign."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.configs.parameters import Defaults, Lora, Reference
from promptmill.manifests.prompt_rules import Weighting, problems_of_prompts
from promptmill.manifests.prompt_templates import expanded
from promptmill.manifests.requests import from_json, make_request, to_json
from promptmill.manifests.rows import Row, RowError
from promptmill.manifests.rules import Rules
from promptmill.manifests.sweeps import swept

ALL = Weighting(weights=True, parts=True, changes=True)
LORAS = ("style", "ink")


def rules(expand="random", syntax="a1111", weighting=ALL, **defaults):
    return Rules(Defaults(**defaults), syntax=syntax, expand=expand, loras=LORAS, weighting=weighting)


def rows_of(*rows, by=None):
    return list(expanded([Row("m.jsonl", number, values) for number, values in enumerate(rows, 1)], by or rules()))


def requests_of(*rows, by=None):
    by = by or rules()
    return [make_request(row, number, by) for number, row in enumerate(rows_of(*rows, by=by), 1)]


def test_a_combination_is_a_row_with_the_same_seed_and_the_template_beside_it():
    rows = rows_of({"id": "a", "prompt": "a {red|blue} cat", "negative_prompt": "{x|y}", "label": 1}, by=rules("combinatorial"))
    assert [(row.values["prompt"], row.values["negative_prompt"]) for row in rows] == [
        ("a red cat", "x"), ("a red cat", "y"), ("a blue cat", "x"), ("a blue cat", "y")
    ]  # fmt: skip
    assert [row.values["id"] for row in rows] == [f"a/prompt={n}" for n in (1, 2, 3, 4)]
    assert {(row.values["sweep_of"], row.values["label"], row.values["prompt_template"]) for row in rows} == {
        ("a", 1, "a {red|blue} cat")
    }
    alone = make_request(Row("m.jsonl", 1, {"id": "a", "prompt": "x"}), 1, rules())
    assert alone.seed is None and len({row.values["seed"] for row in rows}) == 1
    assert {row.values["seed"] for row in rows_of({"prompt": "{a|b}", "seed": 5}, by=rules("combinatorial"))} == {5}


def test_rows_behind_others_that_became_several_keep_the_ids_of_their_own_numbers():
    some = [{"prompt": "{a|b}"}, {"prompt": "plain"}, {"prompt": "{c|d}"}, {"prompt": "("}, {"id": "own", "prompt": "e"}]
    by = rules("combinatorial")
    made = [row.values.get("id") for row in rows_of(*some, by=by)]
    assert made == ["1/prompt=1", "1/prompt=2", "2", "3/prompt=1", "3/prompt=2", "4", "own"]
    rows = [Row("m.jsonl", number, values) for number, values in enumerate([{**some[1], "sweep": {"steps": [1, 2]}}, *some], 1)]
    swept_too = [row.values.get("id") for row in expanded(swept(rows, None, 0), by)]
    assert swept_too == ["1/steps=1", "1/steps=2", "2/prompt=1", "2/prompt=2", "3", "4/prompt=1", "4/prompt=2", "5", "own"]


def test_words_are_those_of_the_last_step_that_is_run():
    one, some = requests_of(
        {"prompt": "a [cat:dog:12]", "steps": 20},
        {"prompt": "a [cat:dog:12]", "steps": 20, "init_image": "a.png", "strength": 0.5},
    )
    assert (one.words, some.words) == ("a dog", "a cat")


def test_a_random_prompt_depends_on_the_seed_and_the_row_alone():
    template = "{a|b|c|d|e|f} {a|b|c|d|e|f} {a|b|c|d|e|f}"
    others = [{"id": str(number), "prompt": template} for number in range(30)]
    together = {row.values["id"]: row.values["prompt"] for row in rows_of(*others)}
    assert together == {row.values["id"]: row.values["prompt"] for row in rows_of(*others[::-1])}
    assert together["7"] == rows_of(others[7])[0].values["prompt"]
    assert len(set(together.values())) > 20
    seeds = {rows_of({"id": "a", "prompt": template, "seed": seed})[0].values["prompt"] for seed in range(30)}
    assert len(seeds) > 20


def test_cells_of_a_sweep_make_the_same_choices():
    row = Row("m.jsonl", 1, {"prompt": "{a|b|c|d} {a|b|c|d}", "sweep": {"steps": [1, 2, 3, 4]}})
    cells = list(expanded(swept([row], None, 0), rules()))
    assert len(cells) == 4 and len({cell.values["prompt"] for cell in cells}) == 1


def test_a_row_says_its_own_syntax_and_a_default_prompt_is_a_template_too():
    plain, own, default = requests_of(
        {"prompt": "a {b|c} (d:2)", "syntax": "plain"}, {"prompt": "a (d:2)"}, {}, by=rules(prompt="a {b|b} [c]")
    )
    assert (plain.prompt, plain.words, plain.syntax, plain.prompt_words) == ("a {b|c} (d:2)", "a {b|c} (d:2)", None, None)
    assert (own.prompt, own.words, own.syntax, own.prompt_template) == ("a (d:2)", "a d", "a1111", None)
    assert (default.prompt, default.prompt_words, default.prompt_template) == ("a b [c]", "a b c", "a {b|b} [c]")
    (switched,) = requests_of({"prompt": "{a|a}", "syntax": "a1111"}, by=rules(syntax="plain"))
    assert (switched.prompt, switched.prompt_template) == ("a", "{a|a}")


def test_loras_of_tags_join_those_of_the_row_or_of_the_defaults():
    tagged = "a cat <lora:style:0.5>"
    (one,) = requests_of({"prompt": tagged, "loras": [{"name": "ink"}]})
    assert (one.prompt, one.prompt_template) == ("a cat", tagged)
    assert one.loras == (Lora(name="ink"), Lora(name="style", scale=0.5))
    (other,) = requests_of({"prompt": tagged}, by=rules(loras=[{"name": "ink", "scale": 2}]))
    assert other.loras == (Lora(name="ink", scale=2), Lora(name="style", scale=0.5))
    (text,) = requests_of({"prompt": tagged, "loras": '[{"name": "ink"}]'})
    assert text.loras == one.loras


def test_a_row_of_a_dataset_is_not_expanded_again():
    (first,) = requests_of({"prompt": "{a|b} <lora:style:0.5> (c)", "id": "x"})
    values = {"id": "x", "prompt": first.prompt, "prompt_template": first.prompt_template, "syntax": first.syntax}
    (again,) = requests_of({**values, "loras": [dict(lora) for lora in first.loras]})
    assert again == first == from_json(to_json(first))
    assert not {"syntax", "prompt_template"} & to_json(requests_of({"prompt": "a"}, by=rules(syntax="plain"))[0]).keys()


BAD = [
    ({"prompt": "a (cat"}, "prompt: column 3: ( is not closed"),
    ({"prompt": "a {cat"}, "prompt: column 3: { is not closed"),
    ({"prompt": "{(a|(a}"}, "prompt: column 1: ( is not closed, in what the template expands to"),
    ({"prompt": "a", "negative_prompt": "b ]"}, "negative_prompt: column 3: ] closes no bracket"),
    ({"prompt": "a cat <lora:stlye:1>"}, "prompt: column 7: no LoRA 'stlye'; did you mean 'style'?"),
    ({"prompt": "<lora:other:1>"}, "prompt: column 1: no LoRA 'other'; declared: style, ink"),
    ({"prompt": "a", "negative_prompt": "x <lora:ink:1>"}, "negative_prompt: column 3: LoRA tags are read in the prompt alone"),
    (
        {"prompt": "<lora:ink:1>", "loras": [{"name": "ink"}]},
        "prompt: column 1: the LoRA 'ink' is also among the row's loras; leave one of them out",
    ),
    ({"prompt": "a __b__"}, "prompt: column 3: wildcard 'b': the config names no folder of wildcards; set prompts.wildcards"),
    ({"prompt": "()"}, "prompt: holds no words"),
    ({"prompt": " # a cat"}, "prompt: column 2: holds nothing but a comment, which # begins; write \\# for the sign itself"),
    ({"prompt": "${x=${x}}${x}"}, "prompt: column 5: an endless recursion: ${x} in ${x}"),
]


@pytest.mark.parametrize(("values", "says"), BAD)
def test_a_bad_prompt_is_one_line_with_file_row_and_column(values, says):
    (row,) = rows_of(values)
    assert row.broken == says and row.where == "m.jsonl, row 1" and not row.values
    with pytest.raises(RowError, match=r"^[^\n]+$"):
        make_request(row, 1, rules())


def test_a_product_that_is_too_large_is_refused():
    wide = "{a|b|c|d|e|f|g|h|i|j}" * 3
    (row,) = rows_of({"prompt": wide, "negative_prompt": wide}, by=rules("combinatorial"))
    assert row.broken == "prompt: makes 1,000,000 rows with its negative_prompt, which are more than 10,000"


UNREAD = [
    ("a (b:1.2)", "prompt: column 3: weights are not read by this model; models of Stable Diffusion, SDXL and Flux do"),
    ("a BREAK b", "prompt: column 3: BREAK is not read by this model; models of Stable Diffusion and SDXL read it"),
    ("a AND b", "prompt: column 3: AND is not read by this model; models of Stable Diffusion and SDXL read it"),
    ("[a|b]", "prompt: column 1: words that change between steps, as [a:b:0.5], are not read by this model"),
]


@pytest.mark.parametrize(("prompt", "says"), UNREAD)
def test_what_a_family_does_not_read_is_a_bad_row_and_words_are_none(prompt, says):
    by = rules(weighting=Weighting())
    with pytest.raises(RowError) as raised:
        requests_of({"prompt": prompt}, by=by)
    assert raised.value.problems[0].startswith(says)
    requests_of({"prompt": r"a \(b\) (c:1)"}, by=by)
    requests_of({"prompt": prompt}, by=rules())


def test_weights_beside_references_are_refused_where_the_model_reads_both_by_one_encoder():
    plain = make_request(Row("m.jsonl", 1, {"prompt": "a (b:1.2)"}), 1, rules())
    request = replace(plain, references=(Reference(type="style", image="a.png"),))
    says = "prompt: weights do not go with references in this model; leave one of them out"
    assert problems_of_prompts(request, Weighting(weights=True)) == [says]
    assert problems_of_prompts(request, ALL) == problems_of_prompts(plain, Weighting(weights=True)) == []
    assert problems_of_prompts(replace(request, prompt="a b"), Weighting(weights=True)) == []


def test_rows_that_make_like_requests_are_checked_each_for_its_own_prompt():
    shapes, by = {}, rules(weighting=Weighting())
    good, bad = rows_of({"prompt": "a"}, {"prompt": "(a:2)"}, by=by)
    make_request(good, 1, by, shapes)
    with pytest.raises(RowError, match="weights are not read"):
        make_request(bad, 2, by, shapes)


def test_a_prompt_that_changes_too_often_is_refused():
    often = "".join(f"[a{n}|b{n}|c{n}]" for n in range(3)) + "".join(f"[x{n}:{n * 3 + 1}]" for n in range(200))
    with pytest.raises(RowError, match="at most 150 are encoded"):
        requests_of({"prompt": often, "steps": 800})
    # Of words that take turns there are few, at however many steps.
    requests_of({"prompt": "a [red|blue|green] circle", "steps": 800})


def test_tokens_are_lost_of_each_part_that_is_encoded_by_itself_and_of_the_longest_step():
    def beyond_three(text):
        return max(0, len(text.split()) - 3)

    prompts = {
        "a b c d e": 2,
        "(a b:1.2) c d": 1,
        "a b c BREAK d e f": 0,
        "a b c d BREAK e f AND g h i j k": 3,
        "[a|a b] c d": 1,
        "[a b c d:a:0.5]": 1,
    }
    made = {prompt: requests_of({"prompt": prompt})[0].lost(beyond_three) for prompt in prompts}
    assert made == prompts
    assert requests_of({"prompt": "a BREAK b", "syntax": "plain"}, by=rules())[0].lost(beyond_three) == 0


@given(st.text("ab{}|()[]:$x_<>lor1.5\\ ", max_size=40), st.sampled_from(["random", "combinatorial"]))
def test_whatever_is_written_makes_rows_or_one_bad_row(text, expand):
    rows = rows_of({"prompt": text}, by=rules(expand))
    assert (rows and all(row.broken is None for row in rows)) or (len(rows) == 1 and "\n" not in rows[0].broken)
