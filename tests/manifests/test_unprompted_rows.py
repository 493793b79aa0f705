"""Rows of models that take no prompt: they may leave it out, name a class, and have the one size that the model makes."""

import json

import pytest

from promptmill.configs.parameters import Defaults
from promptmill.configs.schema import Ranking
from promptmill.configs.scorers import HeadScorer, OpenClipScorer
from promptmill.manifests.checking import check_rows
from promptmill.manifests.requests import RowError, from_json, make_request, to_json
from promptmill.manifests.rows import Row
from promptmill.manifests.rules import Rules

RANKING = Ranking(
    model="ViT-L-14",
    pretrained="openai",
    scorers=(
        OpenClipScorer(kind="open_clip", name="b16", model="ViT-B-16", pretrained="openai"),
        HeadScorer(kind="head", name="nice", source="./head.safetensors"),
    ),
)
DRAWS = Rules(Defaults(width=64, height=64), ignored=("prompt", "guidance_scale"), classes=10, side=(64, 64), ranking=RANKING)
READS = Rules(Defaults(width=64, height=64))


def check(folder, rules, *rows):
    (folder / "m.jsonl").write_text("".join(json.dumps({"id": str(number), **row}) + "\n" for number, row in enumerate(rows)))
    return list(check_rows([str(folder / "m.jsonl")], rules))


def test_a_prompt_may_be_left_out_and_the_scores_that_need_one_are_named(tmp_path):
    (row,) = check(tmp_path, DRAWS, {"class_label": 3})
    assert row.request.prompt == ""
    assert row.notes == (
        "prompt: none is given, so clip_score, b16_score compare images with an empty text; a head looks at images alone",
    )


def test_a_prompt_that_is_given_has_no_effect_on_images_and_is_kept_for_scores(tmp_path):
    (row,) = check(tmp_path, DRAWS, {"class_label": 3, "prompt": "a penguin"})
    assert row.request.prompt == "a penguin" and len(row.notes) == 1
    assert row.notes[0].startswith("prompt: has no effect on images, since the model takes none")


def test_other_models_need_a_prompt_as_ever(tmp_path):
    (row,) = check(tmp_path, READS, {})
    assert row.problems == ("prompt: missing, and the config's defaults have none",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "class_label: missing; the model draws classes from 0 to 9, one for each row"),
        ({"class_label": 10}, "class_label: 10 is none of the model's; the model draws classes from 0 to 9, one for each row"),
        ({"class_label": 3, "width": 128}, "width: 128 x 64, and the model makes 64 x 64 pixels alone"),
    ],
)
def test_a_class_that_is_missing_or_none_of_the_models_and_another_size_are_bad_rows(tmp_path, given, said):
    (row,) = check(tmp_path, DRAWS, given)
    assert row.problems == (said,)


@pytest.mark.parametrize("label", [-1, 1.5, "dog", True])
def test_what_is_no_number_of_a_class_is_a_bad_row(tmp_path, label):
    (row,) = check(tmp_path, DRAWS, {"class_label": label})
    assert len(row.problems) == 1 and row.problems[0].startswith("class_label: ")


def test_a_class_is_carried_into_the_dataset_and_part_of_the_plan(tmp_path):
    one, other = check(tmp_path, DRAWS, {"class_label": 0}, {"class_label": 9})
    assert (one.request.class_label, other.request.class_label) == (0, 9)
    assert one.request.carried == {"class_label": 0}
    assert from_json(json.loads(json.dumps(to_json(one.request)))) == one.request


def test_models_without_classes_carry_a_column_of_that_name_whatever_it_holds(tmp_path):
    for rules in (READS, Rules(READS.defaults, strict=True)):
        (row,) = check(tmp_path, rules, {"prompt": "a dog", "class_label": "dog"})
        assert row.request.carried == {"class_label": "dog"} and row.request.class_label is None and not row.notes


def test_a_label_that_is_only_carried_is_hinted_at_by_no_other_problem():
    with pytest.raises(RowError) as raised:
        make_request(Row("m", 1, {"prompt": "a", "class_label": "cat", "width": 0}), 1, Rules(Defaults()))
    assert "not known" not in "; ".join(raised.value.problems)
