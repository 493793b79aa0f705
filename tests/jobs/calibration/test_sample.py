import json

import pytest

from promptmill.configs.loading import load
from promptmill.jobs.calibration.sample import Shape, draw
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.planning.sources import look


def sources(tmp_path, rows, *settings):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return look(load("embedded", [f"manifest={manifest}", *settings]))


def ids(drawn):
    return [placed.request.id for placed in drawn.requests]


def rows(count):
    return [{"id": f"r{number}", "prompt": "a small red circle"} for number in range(count)]


def test_a_larger_sample_holds_a_smaller_one_and_the_order_of_rows_changes_nothing(tmp_path):
    there = sources(tmp_path, rows(50))
    few, many = draw(there, 5), draw(there, 20)
    assert (len(few.requests), few.rows, many.rows) == (5, 50, 50)
    assert ids(many)[:5] == ids(few)
    assert ids(draw(sources(tmp_path, rows(50)[::-1]), 20)) == ids(many)
    assert sorted(ids(draw(there, 1000))) == sorted(row["id"] for row in rows(50))
    assert ids(draw(there, 20)) != [row["id"] for row in rows(20)]


def test_rows_that_make_no_request_or_have_nothing_to_rank_are_not_drawn(tmp_path):
    some = [*rows(4), {"id": "bad", "prompt": 7}, {"id": "single", "prompt": "x", "candidates": 1}]
    drawn = draw(sources(tmp_path, some), 10)
    assert (sorted(ids(drawn)), drawn.rows) == (["r0", "r1", "r2", "r3"], 4)


def test_of_candidates_that_grow_one_round_is_drawn(tmp_path):
    grows = {"start": 3, "max": 9, "until_score": 30}
    (placed,) = draw(sources(tmp_path, [{"prompt": "x", "candidates": grows, "keep": 5}]), 1).requests
    assert (placed.request.candidates, placed.request.keep, placed.request.growing) == (3, 3, None)


def test_the_shapes_are_those_of_all_rows_drawn_or_not_and_of_the_defaults(tmp_path):
    weak = [{"prompt": "x", "init_image": "x.png", "strength": strength} for strength in (0.9, 0.3, 0.6)]
    some = [*rows(30), {"prompt": "x", "steps": 4, "keep": 2}, *weak]
    found = draw(sources(tmp_path, some), 1)
    assert len(found.requests) <= 1
    assert {(s.candidates, s.keep, s.steps, s.strength) for s in found.shapes} == {
        (4, 1, 20, 0.3),
        (4, 2, 4, None),
        (4, 1, 20, None),
    }
    assert found.shapes[-1] == Shape(4, 1, 20, "dpmpp_2m")


def test_of_rows_with_one_id_the_first_is_drawn_and_no_other(tmp_path):
    drawn = draw(sources(tmp_path, [*rows(3), {"id": "r1", "prompt": "another", "candidates": 8}]), 10)
    assert sorted(ids(drawn)) == ["r0", "r1", "r2"]
    assert next(placed for placed in drawn.requests if placed.request.id == "r1").request.candidates == 4


def test_a_request_whose_image_cannot_be_used_is_named(tmp_path):
    drawn = draw(sources(tmp_path, [*rows(2), {"id": "lost", "prompt": "x", "init_image": "nowhere.png"}]), 10)
    assert sorted(ids(drawn)) == ["r0", "r1"]
    assert "nowhere.png" in drawn.broken["lost"]


def test_a_manifest_with_nothing_to_rank_is_refused_with_what_is_wrong_with_its_rows(tmp_path):
    with pytest.raises(PlanError, match="nothing to rank"):
        draw(sources(tmp_path, rows(3), "defaults.candidates=1"), 5)
    with pytest.raises(PlanError, match=r"row 2.*prompt.*\n.*nothing to rank"):
        draw(sources(tmp_path, [{"prompt": "x", "candidates": 1}, {"prompt": 7}]), 5)
