"""Boxes of rows: read from every format, refused in one line, and taken over by a second pass."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptmill.configs.columns import BOX
from promptmill.configs.parameters import MAX_BOXES, MAX_PHRASE, Box, Defaults
from promptmill.manifests.checking import check_rows
from promptmill.manifests.own_outputs import as_input
from promptmill.manifests.requests import from_json, make_request, to_json
from promptmill.manifests.rows import Row, RowError
from promptmill.manifests.rules import Rules

BETA = "gligen_scheduled_sampling_beta"
PLACING = Rules(Defaults(width=64, height=64), boxes=True, further=(BETA,))
PLAIN = Rules(Defaults(width=64, height=64))
CAT = {"phrase": "a cat", "x0": 0.1, "y0": 0.2, "x1": 0.5, "y1": 1}


def made(given, rules=PLACING, **more):
    return make_request(Row("m", 1, {"prompt": "x", "gligen_boxes": given, **more}), 1, rules)


def problems_of(given, rules=PLACING):
    with pytest.raises(RowError) as caught:
        made(given, rules)
    return caught.value.problems


def test_a_row_has_boxes_as_a_list_or_as_json_and_survives_json():
    for given in ([CAT, CAT], json.dumps([CAT, CAT])):
        request = made(given)
        assert request.gligen_boxes == (Box(**CAT),) * 2 and request.mode == "txt2img"
        assert from_json(json.loads(json.dumps(to_json(request)))) == request
    assert len(made([CAT] * MAX_BOXES).gligen_boxes) == MAX_BOXES


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "gligen_boxes: none is given, and the model draws phrases in the boxes of each row"),
        (None, "gligen_boxes: none is given, and the model draws phrases in the boxes of each row"),
        ([{**CAT, "x1": 1.01}], "gligen_boxes.0.x1: input should be less than or equal to 1 (found 1.01)"),
        ([{**CAT, "y0": -0.1}], "gligen_boxes.0.y0: input should be greater than or equal to 0 (found -0.1)"),
        ([CAT, {**CAT, "x0": 0.5}], "gligen_boxes.1: x0 0.5 is not below x1 0.5, so that nothing is in the box"),
        ([{**CAT, "y1": 0.1}], "gligen_boxes.0: y0 0.2 is not below y1 0.1, so that nothing is in the box"),
        ([{**CAT, "phrase": ""}], "gligen_boxes.0.phrase: "),
        ([{**CAT, "phrase": " "}], "gligen_boxes.0: its phrase says nothing"),
        ([{**CAT, "phrase": "a " * MAX_PHRASE}], "gligen_boxes.0.phrase: "),
        ([{**CAT, "phrase": "a\0cat"}], "gligen_boxes.0.phrase: holds a NUL character"),
        ([CAT] * 29 + [{**CAT, "phrase": "a\0cat"}], "gligen_boxes.29.phrase: holds a NUL character"),
        ([{name: value for name, value in CAT.items() if name != "phrase"}], "gligen_boxes.0.phrase: "),
        ([{**CAT, "x0": True}], "gligen_boxes.0.x0: input should not be true or false"),
        ([[0, 0, 1, 1]], "gligen_boxes.0: "),
        ([CAT] * (MAX_BOXES + 1), "gligen_boxes: "),
        ("a cat", "gligen_boxes: not a JSON list"),
    ],
)
def test_wrong_boxes_are_one_line(given, says):
    (problem,) = problems_of(given)
    assert problem.startswith(says), problem
    assert "\n" not in problem


def test_a_model_that_draws_nothing_in_boxes_refuses_them():
    assert problems_of([CAT], PLAIN) == ("gligen_boxes: the model draws nothing in boxes; leave them out; models of GLIGEN do",)
    request = make_request(Row("m", 1, {"prompt": "x"}), 1, PLAIN)
    assert not {"gligen_boxes", BETA} & to_json(request).keys()


def test_a_column_of_boxes_that_is_not_promptmills_is_carried(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "a", "boxes": [[1, 2, 3, 4]]}))
    (checked,) = check_rows([str(tmp_path / "m.jsonl")], PLAIN)
    assert checked.request.carried["boxes"] == [[1, 2, 3, 4]] and not checked.problems


def test_the_share_of_the_steps_that_know_of_boxes_is_the_configs_unless_a_row_says_another(tmp_path):
    lines = [{"prompt": "a", "gligen_boxes": [CAT], **more} for more in ({}, {BETA: 1}, {BETA: 1.5})]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    some = list(check_rows([str(tmp_path / "m.jsonl")], PLACING))
    assert [one.request and one.request.gligen_scheduled_sampling_beta for one in some] == [0.3, 1.0, None]
    assert some[2].problems[0].startswith(f"{BETA}: ")
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "a", BETA: 1}))
    (other,) = check_rows([str(tmp_path / "m.jsonl")], PLAIN)
    assert other.notes == (f"{BETA}: has no effect, since the model takes none",)
    assert other.request.gligen_scheduled_sampling_beta is None


def test_boxes_of_parquet_are_read_and_those_of_an_output_are_the_rows_of_a_second_pass(tmp_path):
    table = pa.table({"prompt": ["a"], "gligen_boxes": pa.array([[CAT]], pa.list_(BOX))})
    pq.write_table(table, tmp_path / "m.parquet")
    (checked,) = check_rows([str(tmp_path / "m.parquet")], PLACING)
    assert checked.request.gligen_boxes == (Box(**CAT),)
    values = {"key": "k", "clip_score": 1.0, "gligen_boxes": [CAT], "sha256": "", "candidate_index": 0}
    assert as_input(values)["gligen_boxes"] == [CAT]
