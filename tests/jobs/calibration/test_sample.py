import json

import pytest

from configs.loading import load
from jobs.calibration.sample import draw
from jobs.plan import PlanError
from jobs.planning import look


def sources(tmp_path, rows, *settings):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return look(load("embedded", [f"manifest={manifest}", *settings]))


def ids(drawn):
    return [placed.request.id for placed in drawn[0]]


def rows(count):
    return [{"id": f"r{number}", "prompt": "a small red circle"} for number in range(count)]


def test_a_larger_sample_holds_a_smaller_one_and_the_order_of_rows_changes_nothing(tmp_path):
    there = sources(tmp_path, rows(50))
    few, many = draw(there, 5), draw(there, 20)
    assert (len(few[0]), few[1], many[1]) == (5, 50, 50)
    assert ids(many)[:5] == ids(few)
    assert ids(draw(sources(tmp_path, rows(50)[::-1]), 20)) == ids(many)
    assert sorted(ids(draw(there, 1000))) == sorted(row["id"] for row in rows(50))
    assert ids(draw(there, 20)) != [row["id"] for row in rows(20)]


def test_rows_that_make_no_request_or_have_nothing_to_rank_are_not_drawn(tmp_path):
    some = [*rows(4), {"id": "bad", "prompt": 7}, {"id": "single", "prompt": "x", "candidates": 1}]
    drawn = draw(sources(tmp_path, some), 10)
    assert (sorted(ids(drawn)), drawn[1]) == (["r0", "r1", "r2", "r3"], 4)


def test_of_candidates_that_grow_one_round_is_drawn(tmp_path):
    grows = {"start": 3, "max": 9, "until_score": 30}
    ((placed,), _) = draw(sources(tmp_path, [{"prompt": "x", "candidates": grows, "keep": 5}]), 1)
    assert (placed.request.candidates, placed.request.keep, placed.request.growing) == (3, 3, None)


def test_a_manifest_with_nothing_to_rank_is_refused_in_one_line(tmp_path):
    with pytest.raises(PlanError, match=r"nothing to rank; set defaults\.candidates"):
        draw(sources(tmp_path, rows(3), "defaults.candidates=1"), 5)
