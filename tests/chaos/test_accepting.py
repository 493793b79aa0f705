"""Going on after the manifest or the config changed, on stand-in work: in the driver, and on Ray where processes die."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.jobs.cli import main
from promptmill.jobs.planning.accepted_changes import put_aside
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.sealed_json import sealed
from promptmill.jobs.planning.sources import look
from promptmill.jobs.running.run import run
from promptmill.shards.lease import hold
from tests.chaos.site import HERE, Site, problems, published


def config(manifest, *settings):
    sizes = ["shards.size=12", "defaults.steps=1", "defaults.candidates=2", "defaults.guidance_scale=1", "model.batch=1"]
    return load("embedded", [f"manifest={manifest}", *sizes, *settings])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    write(folder / "manifest.jsonl", 24)
    make_plan(look(config(folder / "manifest.jsonl")), str(folder / "template"))
    site = Site.of(folder / "template", folder / "site", HERE)
    site.finish()
    return folder


@pytest.fixture
def finished(once, tmp_path):
    """A finished run of 24 rows in two shards."""
    shutil.copy(once / "manifest.jsonl", tmp_path)
    return tmp_path / "manifest.jsonl", Site.of(once / "site" / "out", tmp_path / "site", HERE)


def write(manifest, rows, **more):
    manifest.write_text("".join(json.dumps({"id": f"r{i}", "prompt": f"prompt {i}", **more}) + "\n" for i in range(rows)))


def test_a_changed_plan_is_refused_with_what_changed_and_accepted_when_told_with_committed_shards_as_they_are(calm, finished):
    manifest, site = finished
    site.address = calm.cluster.address
    before = published(Path(site.out))
    first = read_plan(site.out).fingerprint
    write(manifest, 36)
    changed = look(config(manifest, "defaults.steps=2"))
    with pytest.raises(PlanError) as refused:
        make_plan(changed, site.out)
    assert "config.defaults.steps: was 1, is 2" in refused.value.problems and "--accept-changes" in refused.value.problems[0]
    assert any(problem.startswith("manifest.0: was ") for problem in refused.value.problems)
    assert published(Path(site.out)) == before

    plan = make_plan(changed, site.out, accept_changes=True)
    assert "config.defaults.steps: was 1, is 2" in plan.accepted[first]
    site.finish()
    after = published(Path(site.out))
    kept = {path for path in before if path.startswith(("data", "metadata", "commits"))}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    steps = duckdb.sql(f"SELECT shard, steps, count(DISTINCT id) FROM '{site.out}/metadata/*.parquet' GROUP BY ALL ORDER BY ALL")
    assert steps.fetchall() == [(0, 1, 12), (1, 1, 12), (2, 2, 12)]
    assert problems(site.out) == []
    # The same again is nothing new.
    assert make_plan(look(config(manifest, "defaults.steps=2")), site.out).fingerprint == plan.fingerprint


def test_parts_of_what_was_given_up_are_dropped_and_rendered_by_the_new_plan(finished, tmp_path):
    manifest, done = finished
    out = tmp_path / "begun"
    make_plan(look(config(manifest)), str(out))
    site = Site(str(out), tmp_path / "notes", HERE, ("--seconds", "0.2"))
    site.notes.mkdir()
    site.run(attack=lambda pid: stop_at_the_first_part(out, pid))
    assert list((out / "parts").glob("*.parquet"))
    make_plan(look(config(manifest, "seed=5")), str(out), accept_changes=True)
    assert not list((out / "parts").glob("*.parquet"))
    site.finish()
    assert problems(str(out)) == []
    assert published(out)["commits/000001.json"] != published(Path(done.out))["commits/000001.json"]


def stop_at_the_first_part(out, pid):
    while not list((out / "parts").glob("*.parquet")):
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("rows", "more", "settings", "says"),
    [
        (24, {}, ["shards.size=6"], "is committed with 12 rows"),
        (30, {"topic": "x"}, [], "carried columns"),
        (30, {}, ["shards.embeddings=none"], "embeddings"),
        (30, {}, ["ranking.diversity={hash: 6}"], "the columns that the config declares"),
        (10, {}, [], "shard 000000 is committed with 12 rows, the manifest now gives it 10"),
        (12, {}, [], "shard 000001 is committed, and the manifest now makes 1 shards"),
    ],
)
def test_what_cannot_stand_beside_committed_shards_is_refused_and_nothing_has_changed(finished, rows, more, settings, says):
    manifest, site = finished
    old, before = manifest.read_text(), everything(site.out)
    write(manifest, rows, **more)
    with pytest.raises(PlanError, match=says):
        make_plan(look(config(manifest, *settings)), site.out, accept_changes=True)
    assert everything(site.out) == before
    manifest.write_text(old)
    make_plan(look(config(manifest)), site.out)


def everything(out):
    return {path: path.read_bytes() for path in Path(out).rglob("*") if path.is_file()}


def test_rows_that_moved_are_refused_since_some_would_be_lost_and_others_rendered_twice(finished):
    manifest, site = finished
    before = everything(site.out)
    rows = [json.dumps({"id": "new", "prompt": "x"}), *manifest.read_text().splitlines()]
    manifest.write_text("\n".join(rows) + "\n")
    with pytest.raises(PlanError, match="shard 000000, row 0: is committed as 'r0', the manifest now has 'new'"):
        make_plan(look(config(manifest)), site.out, accept_changes=True)
    assert everything(site.out) == before


def test_accepting_may_be_cut_off_and_gone_on_with_and_earlier_plans_stay_known(finished):
    manifest, site = finished
    before = published(Path(site.out))
    first = read_plan(site.out).fingerprint
    for seed in (5, 0, 6):
        make_plan(look(config(manifest, f"seed={seed}")), site.out, accept_changes=True)
    put_aside(site.out, read_plan(site.out))
    with pytest.raises(PlanError, match="give --accept-changes to go on"):
        make_plan(look(config(manifest, "seed=7")), site.out)
    plan = make_plan(look(config(manifest, "seed=7")), site.out, accept_changes=True)
    assert len(plan.accepted) == 3 and plan.accepted[first] == ["config.seed: was 0, is 7"]
    site.finish()
    after = published(Path(site.out))
    assert {path: content for path, content in after.items() if "/" in path} == {p: c for p, c in before.items() if "/" in p}
    assert problems(site.out) == []


def test_a_smaller_manifest_leaves_no_plans_of_shards_behind(tmp_path):
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "out"
    write(manifest, 36)
    make_plan(look(config(manifest)), str(out))
    write(manifest, 24)
    make_plan(look(config(manifest)), str(out), accept_changes=True)
    site = Site(str(out), tmp_path / "notes", HERE)
    site.notes.mkdir()
    site.finish()
    assert problems(str(out)) == []


def test_a_shard_of_an_earlier_plan_is_not_made_again_by_a_later_one(finished):
    manifest, site = finished
    write(manifest, 36)
    make_plan(look(config(manifest, "defaults.steps=2")), site.out, accept_changes=True)
    site.finish()
    tar = Path(site.out) / "data" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    (Path(site.out) / "plan" / "hardware.json").write_bytes(hardware())
    before = everything(site.out)
    done = CliRunner().invoke(main, ["verify", site.out, "--repair"])
    assert done.exit_code == 2
    assert "shard 000001 was committed before changes that were accepted" in done.output
    assert everything(site.out) == before


def hardware():
    """What the plan would say had it begun here rather than on stand-ins."""
    from promptmill.pipelines.rendering.hardware import hardware_kind

    return sealed(hardware_kind(1))


def test_failures_of_an_earlier_plan_stay_as_they_are(calm, tmp_path):
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "out"
    write(manifest, 12)
    manifest.write_text(manifest.read_text().replace("prompt 5", "exit 5"))
    make_plan(look(config(manifest, "defaults.candidates=1")), str(out))
    site = Site(str(out), tmp_path / "notes", calm.cluster.address, ("--generators", "4"))
    site.notes.mkdir()
    assert site.run().status == 3
    (site.notes / "cured").touch()
    before = published(out)
    make_plan(look(config(manifest, "defaults.candidates=1", "seed=9")), str(out), accept_changes=True)
    ended = site.run("--retry-failed")
    assert "1 shards with failed rows were committed before changes that were accepted" in ended.said
    assert {p: c for p, c in published(out).items() if "/" in p} == {p: c for p, c in before.items() if "/" in p}


def test_a_run_whose_plan_was_replaced_while_it_waited_does_not_begin(finished):
    manifest, site = finished
    stale = read_plan(site.out)
    make_plan(look(config(manifest, "seed=5")), site.out, accept_changes=True)
    with pytest.raises(PlanError, match="was planned anew"):
        run(stale, site.out, None)


def test_nobody_plans_an_output_that_another_is_planning_or_accepts_what_another_is_rendering(finished, tmp_path):
    manifest, site = finished
    for out, arguments in ((str(tmp_path / "new"), ["plan"]), (site.out, ["run", "--accept-changes"])):
        there = everything(out)
        with hold(out):
            done = CliRunner().invoke(main, [*arguments, "embedded", "--set", f"manifest={manifest}", "--out", out])
        assert done.exit_code == 1
        assert "is being written by process" in done.output
        assert everything(out) == there
