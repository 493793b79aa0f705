"""Going on after the manifest or the config changed, on stand-in work."""

import json
from pathlib import Path

import duckdb
import pytest

from configs.loading import load
from jobs.plan import PlanError, read_plan
from jobs.planning import look, make_plan
from tests.chaos.site import Site, problems, published


def config(manifest, *settings):
    sizes = ["shards.size=12", "defaults.steps=1", "defaults.candidates=2", "defaults.guidance_scale=1", "model.batch=1"]
    return load("embedded", [f"manifest={manifest}", *sizes, *settings])


@pytest.fixture
def finished(calm, tmp_path):
    """A finished run of 24 rows in two shards."""
    manifest = tmp_path / "manifest.jsonl"
    write(manifest, 24)
    template = tmp_path / "template"
    make_plan(look(config(manifest)), str(template))
    site = Site.of(template, tmp_path / "site", calm.cluster.address)
    site.finish()
    return manifest, site


def write(manifest, rows, **more):
    manifest.write_text("".join(json.dumps({"id": f"r{i}", "prompt": f"prompt {i}", **more}) + "\n" for i in range(rows)))


def test_a_changed_plan_is_refused_with_what_changed_and_accepted_when_told_with_committed_shards_as_they_are(finished):
    manifest, site = finished
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


def test_parts_of_what_was_given_up_are_dropped_and_rendered_by_the_new_plan(finished, calm, tmp_path):
    manifest, done = finished
    out = tmp_path / "begun"
    make_plan(look(config(manifest)), str(out))
    site = Site(str(out), tmp_path / "notes", calm.cluster.address, ("--seconds", "0.2"))
    site.notes.mkdir()
    site.run(attack=lambda pid: stop_at_the_first_part(out, pid))
    assert list((out / "parts").glob("*.parquet"))
    make_plan(look(config(manifest, "seed=5")), str(out), accept_changes=True)
    assert not list((out / "parts").glob("*.parquet"))
    site.finish()
    assert problems(str(out)) == []
    assert published(out)["commits/000001.json"] != published(Path(done.out))["commits/000001.json"]


def stop_at_the_first_part(out, pid):
    import os
    import signal
    import time

    while not list((out / "parts").glob("*.parquet")):
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("rows", "more", "settings", "says"),
    [
        (24, {}, ["shards.size=6"], "shards.size|is committed with 12 rows"),
        (30, {"topic": "x"}, [], "carried columns"),
        (30, {}, ["shards.embeddings=none"], "embeddings"),
        (10, {}, [], "shard 000000 is committed with 12 rows, the manifest now gives it 10"),
        (12, {}, [], "shard 000001 is committed, and the manifest now makes 1 shards"),
    ],
)
def test_what_cannot_stand_beside_committed_shards_is_refused_and_the_old_plan_can_be_gone_back_to(
    finished, rows, more, settings, says
):
    manifest, site = finished
    old, before = manifest.read_text(), published(Path(site.out))
    write(manifest, rows, **more)
    with pytest.raises(PlanError, match=says):
        make_plan(look(config(manifest, *settings)), site.out, accept_changes=True)
    manifest.write_text(old)
    with pytest.raises(PlanError, match="give --accept-changes to go on"):
        make_plan(look(config(manifest)), site.out)
    make_plan(look(config(manifest)), site.out, accept_changes=True)
    site.finish()
    assert published(Path(site.out)) == before
    assert problems(site.out) == []
