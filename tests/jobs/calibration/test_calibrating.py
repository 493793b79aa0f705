"""`promptmill calibrate` on the embedded family: what it says, keeps, writes and refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from click.testing import CliRunner

from configs.loading import load
from embedded.evaluate import scenes_for
from embedded.world import describe
from jobs.calibration import trials as observing
from jobs.calibration.sample import draw
from jobs.calibration.trials import Notes, identity
from jobs.cli import main
from jobs.planning import look
from pipelines.engine import Engine
from pipelines.loading import device_here
from pipelines.scorers import load_scorers
from pipelines.sources import ROOT
from pipelines.units import Unit
from tests.jobs.calibration import made

# Few steps: the family is often wrong then, so that there is something to rank.
SMALL = ("defaults.steps=6", "defaults.candidates=4", "defaults.guidance_scale=1", "model.batch=8")
TRIED = ("--drafts", "2,4", "--requests", "10", "--gain", "1")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrating") / "manifest.jsonl"
    scenes, _ = scenes_for(51, 12)
    path.write_text("".join(json.dumps({"id": f"r{n}", "prompt": describe(scene)}) + "\n" for n, scene in enumerate(scenes)))
    return path


def arguments(manifest, trials, *more, settings=SMALL):
    options = [part for setting in (f"manifest={manifest}", *settings) for part in ("--set", setting)]
    return ["calibrate", "embedded", *options, "--trials", str(trials), *more]


def calibrate(*said, **options):
    return CliRunner().invoke(main, arguments(*said, **options))


@pytest.fixture(scope="module")
def whole(manifest):
    """The trials of a calibration that nothing disturbed, and what it said to a program."""
    trials = manifest.parent / "whole.jsonl"
    result = calibrate(manifest, trials, *TRIED, "--json")
    assert result.exit_code in (0, 1), result.output
    return trials, json.loads(result.stdout)


def no_models(monkeypatch):
    def refuse(sources):
        raise AssertionError("a model is loaded for what is known already")

    monkeypatch.setattr(observing, "_loaded", refuse)


def test_every_cascade_is_shown_with_its_price_and_its_gain_beside_previews(whole):
    _, said = whole
    assert (said["requests"], said["of"], said["score"]) == (10, 12, "clip")
    assert [len(some["stages"]) for some in said["drafts"]].count(2) == 3  # keep 3 then 2, 3 then 1, 2 then 1
    for some in [*said["drafts"], *said["previews"]]:
        measure = some["gain"]["clip"]
        assert measure["low"] <= measure["value"] <= measure["high"] <= 1.0000001
    steps = {(len(some["stages"]), some["stages"][0]["steps"], some["stages"][0]["keep"]): some["price"] for some in said["drafts"]}
    assert steps[1, 2, 1] == pytest.approx(2 / 6 + 1 / 4)
    assert {(len(s["stages"]), s["stages"][0]["steps"], s["stages"][0]["keep"]): s["price"] for s in said["previews"]}[
        1, 2, 1
    ] == pytest.approx(2 / 6 + 4 / 6 / 4)
    assert said["full_price"] == 10 * 4 * 6
    assert said["without"] == {}


def test_candidates_that_calibration_saw_are_those_of_a_run(whole, manifest):
    """The scores of finals are of the very images that a run renders: seeds, steps, batch and all."""
    sources = look(load("embedded", [f"manifest={manifest}", *SMALL]))
    placed = draw(sources, 1)[0][0]
    engine = Engine(sources.config.model, sources.config.seed, sources.roots)
    (outcome,) = engine.render(Unit(0, 0, (placed,))).outcomes
    scorers = load_scorers(sources.config.ranking, device_here())
    scores = [one.score for one in scorers.score([placed.request.prompt] * 4, [c.pixels for c in outcome.candidates])]
    known = [json.loads(line) for line in whole[0].read_text().splitlines()[1:]]
    assert next(line for line in known if line["id"] == placed.request.id)["scores"]["clip"] == scores


def test_what_is_known_is_not_rendered_again_and_what_is_new_is(whole, manifest, tmp_path, monkeypatch):
    trials = tmp_path / "trials.jsonl"
    trials.write_bytes(whole[0].read_bytes())
    with monkeypatch.context() as patched:
        no_models(patched)
        assert json.loads(calibrate(manifest, trials, *TRIED, "--json").stdout) == whole[1]
        fewer = calibrate(manifest, trials, *TRIED, "--requests", "6", "--drafts", "2", "--no-previews", "--json")
        assert json.loads(fewer.stdout)["requests"] == 6
    more = json.loads(calibrate(manifest, trials, *TRIED, "--requests", "12", "--json").stdout)
    assert more["requests"] == 12
    lines = trials.read_text().splitlines()
    assert len(lines) == 1 + 12
    assert trials.read_bytes().startswith(whole[0].read_bytes())


def test_a_calibration_that_is_killed_goes_on_and_finds_the_same(whole, manifest, tmp_path):
    trials = tmp_path / "trials.jsonl"
    command = [sys.executable, "-m", "jobs", *arguments(manifest, trials, *TRIED, "--json")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not trials.exists() or trials.read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = trials.read_bytes()
    assert 3 <= before.count(b"\n") < 11
    trials.write_bytes(before + b'{"id": "torn", "sig')  # as if it had died while it wrote
    result = calibrate(manifest, trials, *TRIED, "--json")
    assert json.loads(result.stdout) == whole[1]
    assert trials.read_bytes().startswith(before)
    assert b"torn" not in trials.read_bytes()


def test_the_config_that_is_written_plans_with_the_chosen_drafts(whole, manifest, tmp_path, monkeypatch):
    no_models(monkeypatch)
    target = tmp_path / "drafted.yaml"
    result = calibrate(manifest, whole[0], *TRIED, "--gain", "1", "--to", target)
    if result.exit_code == 1:
        pytest.fail(f"drafts of the family keep less than a hundredth of the gain?\n{result.output}")
    assert "<- chosen" in result.output
    assert "held out" in result.output
    content = yaml.safe_load(target.read_text())
    assert content["ranking"]["drafts"] == whole[1]["chosen"]["stages"]
    assert content["defaults"]["steps"] == 6
    assert "drafts_stochastic" not in content["ranking"]
    planned = CliRunner().invoke(main, ["plan", str(target), "--out", str(tmp_path / "out"), "--no-measure"])
    assert planned.exit_code == 0, planned.output
    share = f"{100 * whole[1]['chosen']['price']:.0f}% of the price without drafts"
    assert share in planned.output


def test_where_nothing_keeps_enough_it_says_so_and_writes_nothing(whole, manifest, tmp_path, monkeypatch):
    no_models(monkeypatch)
    target = tmp_path / "drafted.yaml"
    result = calibrate(manifest, whole[0], *TRIED, "--drafts", "2", "--gain", "100", "--to", target)
    assert result.exit_code == 1, result.output
    assert "no cascade is shown to keep 100% of the gain by clip" in result.output
    assert not target.exists()


def refused(result, *said):
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for words in said:
        assert words in result.output


def test_bad_input_is_one_line_each(whole, manifest, tmp_path, monkeypatch):
    no_models(monkeypatch)
    trials = tmp_path / "trials.jsonl"
    refused(calibrate(manifest, trials, "--drafts", "4,x"), "'4,x' are no numbers of steps; write them as 4,6,8")
    refused(calibrate(manifest, trials, "--drafts", "0"), "no numbers of steps")
    refused(calibrate(manifest, trials, "--drafts", "6,9"), "no cascade with drafts of 6, 9 steps fits finals of 6")
    refused(calibrate(manifest, trials, "--sampler", "eular"), "did you mean 'euler'")
    there = tmp_path / "there.yaml"
    there.write_text("mine: 1\n")
    refused(calibrate(manifest, trials, "--to", there), "is there already")
    assert there.read_text() == "mine: 1\n"
    refused(calibrate(manifest, trials, settings=("defaults.candidates=1",)), "nothing to rank")
    refused(calibrate(manifest, whole[0], *TRIED, settings=(*SMALL, "seed=5")), "trials of another manifest, config, model")
    junk = tmp_path / "junk.jsonl"
    junk.write_text("hello\n")
    refused(calibrate(manifest, junk, *TRIED), "not a file of trials")
    assert junk.read_text() == "hello\n"
    assert not trials.exists()


@pytest.mark.parametrize("pays", [True, False])
def test_drafts_by_samplers_with_noise_of_their_own_are_allowed_only_where_they_pay(manifest, tmp_path, monkeypatch, pays):
    noisy = ("defaults.scheduler=euler_a", "defaults.candidates=8")
    trials, target = tmp_path / "trials.jsonl", tmp_path / "drafted.yaml"
    sources = look(load("embedded", [f"manifest={manifest}", *noisy]))
    notes = Notes(trials, identity(sources))
    for seed, placed in enumerate(draw(sources, 12)[0]):
        known = made.trial(seed, noise=0.0 if pays else 1e6)
        notes.add(placed.request.id, known.sights, known.scores)
    no_models(monkeypatch)
    asked = ("--drafts", "4,6", "--no-previews", "--to", target)
    result = calibrate(manifest, trials, *asked, settings=noisy)
    assert result.exit_code == (0 if pays else 1), result.output
    assert ("add noise of their own" in result.output) == target.exists() == pays
    if pays:
        assert yaml.safe_load(target.read_text())["ranking"]["drafts_stochastic"] is True
    assert "x0 previews" not in result.output


def test_a_request_that_cannot_be_rendered_is_left_out_and_named(manifest, tmp_path):
    own = tmp_path / "manifest.jsonl"
    own.write_text(manifest.read_text() + json.dumps({"id": "lost", "prompt": "x", "init_image": "nowhere.png"}) + "\n")
    result = calibrate(
        own, tmp_path / "trials.jsonl", "--drafts", "2", "--requests", "13", "--no-previews", "--json", settings=SMALL
    )
    said = json.loads(result.stdout)
    assert said["requests"] == 12
    assert "nowhere.png" in said["without"]["lost"]
