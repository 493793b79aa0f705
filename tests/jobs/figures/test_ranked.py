"""What a run says of its ranking at its end is what its metadata says."""

import json
import statistics

import pyarrow.parquet as pq
import pytest

from promptmill.configs.loading import load
from promptmill.jobs.figures.ranked import look_back, ranked_facts, ranked_lines
from promptmill.jobs.planning.plan import read_plan
from promptmill.jobs.showing.progress import Tally
from promptmill.jobs.showing.summary import run_lines
from promptmill.shards.commits import read_records
from promptmill.shards.index import total
from tests.jobs.running.test_run import HERE, rendered

PROMPTS = ("a small red circle at the left on a black background", "a large blue cross at the right on a white background")
DRAFTS = "ranking.drafts=[{steps: 1, keep: 2}]"


def made(folder, name, *settings):
    """A finished dataset of eight requests of four candidates, in two shards."""
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"prompt": PROMPTS[n % 2]}) + "\n" for n in range(8)))
    said = (f"manifest={manifest}", "defaults.steps=4", "defaults.candidates=4", "shards.size=5", HERE, *settings)
    out = str(folder / name)
    rendered(load("embedded", said), out)
    return out, pq.read_table(f"{out}/metadata").to_pylist()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return made(tmp_path_factory.mktemp("plain"), "out")


def lines_of(out):
    return list(ranked_lines(look_back(out, read_plan(out))))


def test_the_curve_the_gain_and_the_thresholds_are_those_of_the_metadata(plain):
    out, rows = plain
    found = look_back(out, read_plan(out))
    requests = {}
    for row in rows:
        requests.setdefault(row["id"], []).append(row["clip_score"])
    assert len(requests) == 8
    bought = found.bought
    assert bought.kept == pytest.approx(statistics.fmean(map(max, requests.values())))
    assert bought.mean == pytest.approx(statistics.fmean(map(statistics.fmean, requests.values())))
    assert bought.curve[0] == pytest.approx(bought.mean) and bought.curve[-1] == pytest.approx(bought.kept)
    assert sum(max(some) >= bought.yields[0.5] for some in requests.values()) in (4, 5)
    assert found.evaluations == sum(row["unet_evaluations"] for row in rows) == found.whole


def test_the_summary_of_a_run_holds_them_for_people_and_for_programs(plain):
    out, _ = plain
    found = look_back(out, read_plan(out))
    said = list(run_lines(total(read_records(out)), Tally(32), out, found))
    assert said[1 : 1 + len(lines_of(out))] == lines_of(out)
    curve = next(line for line in said if line.startswith("best of n"))
    assert curve.count(":") == 4 and f"4: {found.bought.curve[3]:.2f}" in curve
    assert any(line.startswith("thresholds") and "50%" in line for line in said)
    assert any(line.startswith("price") and "100.0% of all candidates in full" in line for line in said)
    assert json.loads(json.dumps(ranked_facts(found), allow_nan=False))["bought"]["curve"] == found.bought.curve


def test_with_drafts_the_price_is_said_and_no_curve_of_those_who_are_left(tmp_path):
    out, rows = made(tmp_path, "drafted", DRAFTS)
    found = look_back(out, read_plan(out))
    price = sum(row["unet_evaluations"] for row in rows)
    assert (found.evaluations, found.drafted) == (price, True)
    said = lines_of(out)
    assert any(f"{price:,} evaluations of the denoiser, 75.0% of all" in line for line in said)
    assert not any(line.startswith("best of n") for line in said)


def test_where_nothing_was_ranked_nothing_is_said(tmp_path):
    out, _ = made(tmp_path, "single", "defaults.candidates=1")
    assert look_back(out, read_plan(out)) is None
    assert not any(line.startswith("ranking") for line in run_lines(total(read_records(out)), Tally(8), out, None))
