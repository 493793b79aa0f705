"""Step caching through the whole job, by the embedded family, with drafts, ControlNets and a request of several passes."""

import json
import shutil

import pytest

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.figures.ranked import look_back, ranked_lines
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import read_plan
from promptmill.jobs.planning.sources import look
from promptmill.jobs.verifying.regenerate import regenerate
from tests.jobs.running.test_run import HERE, problems, rendered, rows, run_by_command

IMAGES = ROOT / "configs" / "presets" / "quickstart" / "images"
INIT, EDGES = "img2img-01-init.png", "canny-01-edges.png"
WAYS = [{}, {"steps": 7, "guidance_scale": 1.0}, {"init_image": INIT}, {"controls": [{"type": "canny", "image": EDGES}]}]
WAYS.append({"candidates": 10, "scheduler": "heun"})  # more than are rendered at once
CACHE = "model.kernels.cache={every: 2, first: 0.25}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    for name in (INIT, EDGES):
        shutil.copy(IMAGES / name, folder / name)
    lines = [{"id": str(number), "prompt": "a small red circle", **way} for number, way in enumerate(WAYS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drafts = "ranking.drafts=[{steps: 4, keep: 2}]"
    return [f"manifest={folder / 'rows.jsonl'}", "model.batch=3", "defaults.steps=6", "defaults.candidates=3", drafts, HERE]


@pytest.fixture(scope="module")
def out(settings, tmp_path_factory):
    return run_by_command([*settings, CACHE], tmp_path_factory.mktemp("run") / "out")


def test_the_metadata_say_what_was_cached_and_it_is_what_the_plan_counts(out):
    assert problems(out) == []
    counts = read_plan(str(out)).counts
    assert rows(out, "sum(unet_evaluations)::INT, sum(cached_evaluations)::INT FROM RUNS") == [(counts.evaluations, counts.cached)]
    assert rows(out, "DISTINCT kernels FROM RUNS") == [("sdpa+cache every 2 from 0.25",)]
    # Drafts of 4 steps cache the second and the fourth, finals of 6 the third and the fifth, with guidance twice each.
    assert rows(
        out, "DISTINCT status, cached_evaluations FROM RUNS WHERE id = '0' AND status IN ('kept', 'drafted') ORDER BY 1"
    ) == [
        ("drafted", 4),
        ("kept", 8),
    ]


def test_the_run_says_which_share_of_its_price_the_cache_answered(out):
    plan = read_plan(str(out))
    ranked = look_back(str(out), plan)
    assert (ranked.evaluations, ranked.cached) == (plan.counts.evaluations, plan.counts.cached)
    share = 100 * plan.counts.cached / plan.counts.evaluations
    assert [*ranked_lines(ranked)][-1].endswith(f"; a step cache answered {share:.0f}% of them")


def test_every_kept_image_is_made_again_alone_to_its_bits(out):
    for (key,) in rows(out, "key FROM RUNS WHERE selected ORDER BY key"):
        assert regenerate(str(out), key).same, key


def test_a_cache_is_part_of_the_fingerprint_and_without_it_nothing_is_said_of_it(settings, out, tmp_path):
    plain = make_plan(look(load("embedded", settings)), str(tmp_path / "plain"))
    assert "cached_evaluations" not in plan_text(tmp_path / "plain") and "cached_evaluations" not in plain.form.names
    assert '"cached"' not in plan_text(tmp_path / "plain") and '"cache"' not in plan_text(tmp_path / "plain")
    others = [read_plan(str(out)).fingerprint, plain.fingerprint]
    for number, cache in enumerate(("{every: 3, first: 0.25}", "{every: 2, first: 0.5}", "{every: 2, last: 0.2}")):
        made = make_plan(look(load("embedded", [*settings, f"model.kernels.cache={cache}"])), str(tmp_path / str(number)))
        others.append(made.fingerprint)
    assert len(set(others)) == 5


def test_an_output_with_a_cache_is_the_manifest_of_a_second_pass(settings, out, tmp_path):
    second = [setting for setting in settings if not setting.startswith(("manifest=", "ranking"))]
    second += [f"manifest={out}/metadata/*.parquet", f"runtime.image_roots=[{settings[0].partition('=')[2].rpartition('/')[0]}]"]
    totals, _ = rendered(load("embedded", [*second, "defaults.candidates=1", CACHE]), tmp_path / "second")
    assert (totals.requests, totals.failed) == (len(WAYS), 0)
    # Candidates of one request keep their seeds, so that a winner is the same image again.
    again = rows(tmp_path / "second", "pixel_sha256 FROM RUNS WHERE selected")
    assert sorted(again) == sorted(rows(out, "pixel_sha256 FROM RUNS WHERE selected"))


def plan_text(folder):
    return (folder / "plan" / "plan.json").read_text()
