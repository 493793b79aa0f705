"""That a row which sweeps columns becomes a row for each combination, with the same seeds, and what cannot be swept is said."""

import itertools
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.configs.errors import ConfigError
from promptmill.configs.loading import load
from promptmill.configs.parameters import MAX_CELLS
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.manifests.rows import Row
from promptmill.manifests.sweeps import swept
from promptmill.pipelines.work.units import candidate_seed

ROW = {"id": "a", "prompt": "a cat"}


def cells(values, defaults=None, seed=0):
    return [*swept([Row("m.jsonl", 1, values)], defaults, seed)]


def test_a_row_becomes_one_for_each_combination_in_the_order_given():
    axes = {"steps": [10, 20], "guidance_scale": [3, 7.5], "scheduler": ["euler", "dpmpp_2m"]}
    made = cells({**ROW, "label": "x", "sweep": axes})
    assert [tuple(row.values[name] for name in axes) for row in made] == list(itertools.product(*axes.values()))
    assert made[0].values["id"] == "a/steps=10,guidance_scale=3,scheduler=euler"
    assert len({row.values["id"] for row in made}) == 8
    for row in made:
        assert (row.values["prompt"], row.values["label"], row.values["sweep_of"]) == ("a cat", "x", "a")
        assert "sweep" not in row.values and row.where == "m.jsonl, row 1"


@given(job_seed=st.integers(0, 2**32 - 1), id=st.text("abc", min_size=1, max_size=5))
@settings(max_examples=20)
def test_cells_have_the_seeds_that_the_row_by_itself_would_have_begun_with(job_seed, id):
    made = cells({**ROW, "id": id, "sweep": {"steps": [1, 2, 3]}}, seed=job_seed)
    alone = SimpleNamespace(id=id, seed=None, variation_seed=None)
    assert {row.values["seed"] for row in made} == {candidate_seed(job_seed, alone, 0)}
    assert {row.values["seed"] for row in cells({**ROW, "seed": 5, "sweep": {"steps": [1, 2]}})} == {5}
    assert [row.values["seed"] for row in cells({**ROW, "sweep": {"seed": [4, 9]}})] == [4, 9]


def test_the_configs_sweep_is_for_rows_without_one_and_rows_without_any_stay_as_they_are():
    assert len(cells(ROW, {"steps": [1, 2, 3]})) == 3
    assert len(cells({**ROW, "sweep": {"width": [64, 128]}}, {"steps": [1, 2, 3]})) == 2
    plain = Row("m.jsonl", 1, ROW)
    assert [*swept([plain], None, 0)] == [plain]
    broken = Row("m.jsonl", 1, {}, broken="nothing")
    assert [*swept([broken], {"steps": [1]}, 0)] == [broken]
    # Without an id the row's number among all rows is what cells begin with.
    ids = [row.values["id"] for row in swept([plain, Row("n.jsonl", 1, {"prompt": "b"})], {"steps": [1]}, 0)]
    assert ids == ["a/steps=1", "2/steps=1"]


def test_a_cell_of_csv_holds_the_sweep_as_json():
    assert [row.values["steps"] for row in cells({**ROW, "sweep": '{"steps": [1, 2]}'})] == [1, 2]


@pytest.mark.parametrize(
    ("sweep", "problem"),
    [
        ({"stesp": [1]}, "sweep: 'stesp' is no column that can be swept; did you mean 'steps'?"),
        ({"id": ["a"]}, "sweep: 'id' is no column that can be swept"),
        ({"steps": []}, "sweep: steps: input should be a list of values"),
        ({"steps": 3}, "sweep: steps: input should be a list of values"),
        ({"steps": [1, 1]}, "sweep: steps: a value is given twice"),
        ({"prompt": ["b"]}, "sweep: prompt: the row has a value of its own; leave one of them out"),
        ({"steps": list(range(200)), "seed": list(range(200))}, f"sweep: 40,000 cells are more than {MAX_CELLS:,}"),
        ("{", "sweep: not JSON: "),
        ([1], "sweep: input should be columns, each with a list of values"),
        ({}, "sweep: input should be columns, each with a list of values"),
    ],
)
def test_a_sweep_that_is_none_makes_one_bad_row(sweep, problem):
    (row,) = cells({**ROW, "sweep": sweep})
    assert row.broken.startswith(problem) and row.values == {"id": "a"}


def test_a_plan_has_a_request_a_cell_and_the_row_that_was_swept_beside_it_also_where_unknown_columns_are_refused(tmp_path):
    rows = [{**ROW, "sweep": {"steps": [2, 3], "guidance_scale": [1, 4]}}, {"id": "b", "prompt": "a dog"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"manifest={tmp_path / 'm.jsonl'}", "runtime.strict=true", "defaults.sweep={steps: [5, 6]}"]
    plan = make_plan(look(load("embedded", given)), str(tmp_path / "out"))
    requests = [placed.request for placed in read_shard(str(tmp_path / "out"), 0, plan).requests]
    assert [(one.steps, one.guidance_scale) for one in requests[:4]] == [(2, 1), (2, 4), (3, 1), (3, 4)]
    assert [(one.id, one.steps) for one in requests[4:]] == [("b/steps=5", 5), ("b/steps=6", 6)]
    assert plan.counts.rows == 6 and plan.carried == {"sweep_of": "string"}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("{stps: [1]}", "sweep: 'stps' is no column that can be swept; did you mean 'steps'?"),
        ("{steps: []}", "sweep.steps: has no values"),
    ],
)
def test_a_configs_sweep_that_is_none_is_refused(values, problem):
    with pytest.raises(ConfigError) as raised:
        load("embedded", [f"defaults.sweep={values}"])
    assert problem in str(raised.value)


def test_a_cell_that_no_row_may_be_is_said_with_the_swept_rows_place(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({**ROW, "sweep": {"steps": [2, 0]}}) + "\n")
    with pytest.raises(PlanError) as raised:
        make_plan(look(load("embedded", [f"manifest={tmp_path / 'm.jsonl'}"])), str(tmp_path / "out"))
    assert "m.jsonl, row 1: steps: input should be greater than or equal to 1 (found 0)" in raised.value.problems[0]
