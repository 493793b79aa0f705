"""Drafts and growing candidates through a whole job of the embedded family: what is published, proved and made again."""

import json
from dataclasses import replace

import duckdb
import pytest
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.jobs.report.making import make
from promptmill.jobs.report.page import page
from promptmill.jobs.running.open_shard import Open, units_of
from promptmill.jobs.running.run import run
from promptmill.jobs.showing.summary import plan_lines, status, status_lines
from promptmill.jobs.verifying.regenerate import regenerate
from promptmill.jobs.verifying.verify import Verified, verify
from tests.jobs.running.test_run import HERE, Watching

SETTINGS = ("model.batch=4", "shards.size=2", HERE, "defaults.steps=5", "defaults.candidates=4")
DRAFTS = "ranking.drafts=[{steps: 2, keep: 2}]"
GROWS = {"start": 3, "max": 6, "until_score": 99}


@pytest.fixture(scope="module")
def drafted(tmp_path_factory):
    """Four requests in two shards: one drafted, one of too few candidates for it, one that grows to its most, one that need not."""
    folder = tmp_path_factory.mktemp("drafts")
    prompt = "a small red circle at the left on a black background"
    ways = [{}, {"candidates": 2, "keep": 2}, {"candidates": GROWS}, {"candidates": {**GROWS, "until_score": -99}}]
    rows = [{"id": str(n), "prompt": prompt, **way} for n, way in enumerate(ways)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load("embedded", [f"manifest={folder / 'rows.jsonl'}", *SETTINGS, DRAFTS])
    plan = make_plan(look(config), str(folder / "out"))
    watching = Watching()
    totals = run(plan, str(folder / "out"), watching)
    return folder, totals, watching


def rows(folder, sql):
    return duckdb.sql(f"SELECT {sql.replace('ROWS', repr(f'{folder}/out/metadata/*.parquet'))}").fetchall()


def test_every_candidate_is_accounted_for_and_every_byte_verified(drafted):
    folder, totals, watching = drafted
    assert (totals.requests, totals.candidates) == (4, 4 + 2 + 6 + 6)
    # By request, in their order.
    kept, rejected, drafted_ones = (1, 2, 1, 1), (1, 0, 3, 1), (2, 0, 2, 1)
    assert (totals.kept, totals.rejected, totals.drafted) == (sum(kept), sum(rejected), sum(drafted_ones))
    assert (totals.spared, totals.failed) == (3, 0)
    assert sum(receipt.candidates for receipt in watching.receipts) == totals.candidates
    (end,) = verify(str(folder / "out"))
    assert isinstance(end, Verified)
    assert end.totals == totals
    (line,) = [line for line in status_lines(status(str(folder / "out"))) if line.startswith("candidates")]
    assert line == "candidates   18 of 18: 5 kept, 5 rejected, 5 drafted, 3 spared, 0 failed"


def test_rows_say_what_was_drafted_at_what_price_and_what_was_spared(drafted):
    folder, _, _ = drafted
    price = "unet_evaluations, len(draft_scores), clip_score IS NULL, rank IS NULL"
    drafts = f"status, {price}, count(*) FROM ROWS WHERE id = '0' GROUP BY ALL ORDER BY ALL"
    assert rows(folder, drafts) == [
        ("drafted", 4, 1, True, True, 2),
        ("kept", 14, 1, False, False, 1),
        ("rejected", 14, 1, False, False, 1),
    ]
    left_out = "SELECT max(draft_scores[1]) FROM ROWS WHERE id = '0' AND status = 'drafted'"
    assert rows(folder, f"count(*) FROM ROWS WHERE id = '0' AND status != 'drafted' AND draft_scores[1] >= ({left_out})") == [(2,)]
    spared = "id, any_value(candidates), count(*), any_value(candidates_spared) FROM ROWS GROUP BY id ORDER BY id"
    assert rows(folder, spared) == [("0", 4, 4, 0), ("1", 2, 2, 0), ("2", 6, 6, 0), ("3", 6, 3, 3)]


def test_survivors_are_made_again_bit_for_bit_and_a_drafted_one_in_full_with_nothing_to_compare(drafted, tmp_path):
    folder, _, _ = drafted
    out = str(folder / "out")
    for (key,) in rows(folder, "min(key) FROM ROWS WHERE status IN ('kept', 'rejected') AND id IN ('0', '2') GROUP BY id, status"):
        assert regenerate(out, key).same is True
    ((key,),) = rows(folder, "min(key) FROM ROWS WHERE status = 'drafted'")
    done = CliRunner().invoke(main, ["regenerate", out, key, "--to", str(tmp_path / "whole.png")])
    assert done.exit_code == 0
    assert "was only drafted; this is what it would have been" in done.output
    assert (tmp_path / "whole.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PlanError, match="no such candidate"):
        regenerate(out, "000001-00001-0005")


def test_the_card_says_how_candidates_were_drafted(drafted):
    folder, _, _ = drafted
    card = (folder / "out" / "README.md").read_text()
    assert "drafts `2 steps keep 2`" in card
    assert "| requests | candidates | kept | rejected | failed | drafted | spared | shards | size |" in card


def test_the_report_counts_what_was_drafted_and_scores_what_was_finished(drafted):
    folder, _, _ = drafted
    report = make(str(folder / "out"))
    shown = page(report).decode()
    assert report.facts.scores.all.count == 5 + 5
    assert "<dd>5 candidates: ranked after few steps" in shown and "<dd>3 candidates: never begun" in shown
    assert "2 steps keep 2" in shown and "2 requests until enough candidates reach a score" in shown


def test_a_plan_says_its_drafts_its_price_and_what_grows(drafted):
    folder, _, _ = drafted
    lines = dict(line.split(maxsplit=1) for line in plan_lines(read_plan(str(folder / "out")), None))
    assert lines["drafts"] == "2 steps keep 2"
    assert lines["growing"].startswith("2 requests until enough reach a score;")
    # 4 drafts of 2 steps and 2 finals of 5; 2 finals; twice two rounds of 3 drafts and 2 finals.
    price, whole = 2 * (8 + 10) + 2 * 10 + 2 * 2 * 2 * (6 + 10), 2 * 5 * (4 + 2 + 6 + 6)
    assert lines["price"] == f"{price} evaluations of the denoiser, {100 * price / whole:.0f}% of the price without drafts"
    assert "warning" not in lines


def test_units_are_begun_with_the_drafts_and_the_diversity_of_the_config(drafted):
    folder, _, _ = drafted
    ranking = ("ranking.diversity={embedding: 0.9}", DRAFTS)
    config = load("embedded", [f"manifest={folder / 'rows.jsonl'}", *SETTINGS, *ranking])
    said = dict(line.split(maxsplit=1) for line in plan_lines(replace(read_plan(str(folder / "out")), config=config), None))
    assert said["growing"].startswith("2 requests until enough reach a score and are unlike each other;")
    for unit in units_of(Open(1), read_shard(str(folder / "out"), 1), config):
        assert (unit.course.drafts, unit.course.diversity) == (config.ranking.drafts, config.ranking.diversity)
        assert unit.course.diversity


def test_drafts_are_no_change_that_committed_shards_can_stand_beside(drafted):
    folder, _, _ = drafted
    config = load("embedded", [f"manifest={folder / 'rows.jsonl'}", *SETTINGS])
    with pytest.raises(PlanError, match=r"ranking.drafts.0.keep: was 2, is not there"):
        make_plan(look(config), str(folder / "out"))
    with pytest.raises(PlanError, match=r"drafts: True in the shards that are committed, False now; give another --out"):
        make_plan(look(config), str(folder / "out"), accept_changes=True)
