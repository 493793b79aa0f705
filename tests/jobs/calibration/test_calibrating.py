"""`promptmill calibrate` on the embedded family: what it says, keeps, writes and refuses."""

import json
import os
import signal
import time
from concurrent.futures import Future

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from promptmill.configs.loading import load
from promptmill.jobs.calibration import trials as observing
from promptmill.jobs.calibration.policies import Sight
from promptmill.jobs.calibration.sample import draw
from promptmill.jobs.calibration.trials import Notes, identity
from promptmill.jobs.cli import main
from promptmill.jobs.planning.sources import look
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import device_here
from promptmill.pipelines.scoring.scorers import load_scorers
from promptmill.pipelines.work.errors import FatalError
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Rendered
from promptmill.pipelines.work.units import Unit
from tests import warm
from tests.jobs.calibration import made

# Few steps: the family is often wrong then, so that there is something to rank.
SMALL = ("defaults.steps=6", "defaults.candidates=4", "defaults.guidance_scale=1", "model.batch=8")
TRIED = ("--drafts", "2,4", "--requests", "10", "--gain", "1")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return made.write_manifest(tmp_path_factory.mktemp("calibrating") / "manifest.jsonl", 12)


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
    placed = draw(sources, 1).requests[0]
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
    # What else is in the manifest, and where it lies, is no matter to what is known of a request.
    moved = tmp_path / "manifest.jsonl"
    moved.write_text(manifest.read_text())
    more = json.loads(calibrate(moved, trials, *TRIED, "--requests", "12", "--json").stdout)
    assert more["requests"] == 12
    lines = trials.read_text().splitlines()
    assert len(lines) == 1 + 12
    assert trials.read_bytes().startswith(whole[0].read_bytes())


def test_a_request_of_many_candidates_is_seen_slice_by_slice_and_told_the_same(whole, manifest, tmp_path, monkeypatch):
    seen, submit = [], Engine.submit
    monkeypatch.setattr("promptmill.pipelines.work.units.at_once", lambda request, batch: 3)
    monkeypatch.setattr(Engine, "submit", lambda engine, unit: [seen.append(unit.candidates), submit(engine, unit)][1])
    assert json.loads(calibrate(manifest, tmp_path / "trials.jsonl", *TRIED, "--json").stdout) == whole[1]
    assert (tmp_path / "trials.jsonl").read_bytes() == whole[0].read_bytes()
    assert set(seen) == {3, 1}


def test_a_request_of_which_a_slice_fails_is_left_out_as_a_whole(whole, manifest, tmp_path, monkeypatch):
    fail, submit = Failure("render_error", "broken"), Engine.submit
    monkeypatch.setattr("promptmill.pipelines.work.units.at_once", lambda request, batch: 3)

    def broken(engine, unit):
        if unit.span[0] == 0 and unit.requests[0].preview is None:
            done = Future()
            done.set_result(Rendered((Outcome(unit.requests[0].row, (), fail),)))
            return done
        return submit(engine, unit)

    monkeypatch.setattr(Engine, "submit", broken)
    calibrate(manifest, tmp_path / "trials.jsonl", *TRIED, "--json")
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()[1:]]
    sights = {name for line in lines for name in line["sights"]}
    assert sights and all(name.startswith("preview") for name in sights)
    assert not any(line["scores"] for line in lines)


def begun(manifest, trials, lines):
    """A calibration in a process of its own that has seen so many requests, and many not yet."""
    process = warm.started("promptmill", arguments(manifest, trials, *TRIED, "--json"))
    until = time.monotonic() + 120
    while not trials.exists() or trials.read_bytes().count(b"\n") <= lines:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    return process


def test_a_calibration_that_is_stopped_or_killed_goes_on_and_finds_the_same(whole, manifest, tmp_path):
    trials = tmp_path / "trials.jsonl"
    stopped = begun(manifest, trials, 2)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, said
    assert said.splitlines()[-1].startswith("stopped; what is done is durable")
    killed = begun(manifest, trials, 5)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = trials.read_bytes()
    assert 5 < before.count(b"\n") < 11
    trials.write_bytes(before + b'{"id": "torn", "sig')  # as if it had died while it wrote
    result = calibrate(manifest, trials, *TRIED, "--json")
    assert json.loads(result.stdout) == whole[1]
    assert trials.read_bytes().startswith(before)
    assert b"torn" not in trials.read_bytes()


def filled(manifest, trials, *settings, noise=0.0, count=200):
    """A file of trials as if that many requests had been rendered, and their drafts told so much of them."""
    sources = look(load("embedded", [f"manifest={manifest}", *settings]))
    notes = Notes(trials, identity(sources))
    for seed, placed in enumerate(draw(sources, count).requests):
        known = made.trial(seed, noise=noise, candidates=placed.request.candidates)
        notes.add(placed, known.sights, known.scores)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "manifest.jsonl"
    path.write_text("".join(json.dumps({"id": f"m{n}", "prompt": "a small red circle"}) + "\n" for n in range(60)))
    return path


EIGHT = ("defaults.candidates=8",)
GIVEN = ("--drafts", "4,6", "--no-previews", "--gain", "90")


def test_the_config_that_is_written_plans_with_the_chosen_drafts(many, tmp_path, monkeypatch):
    no_models(monkeypatch)
    trials, target = tmp_path / "trials.jsonl", tmp_path / "drafted.yaml"
    filled(many, trials, *EIGHT)
    result = calibrate(many, trials, *GIVEN, "--to", target, settings=EIGHT)
    assert result.exit_code == 0, result.output
    assert "<- chosen" in result.output
    assert "held out     chosen likewise" in result.output
    content = yaml.safe_load(target.read_text())
    assert content["ranking"]["drafts"] == [{"steps": 4, "keep": 1}]
    assert content["defaults"]["candidates"] == 8
    assert "drafts_stochastic" not in content["ranking"]
    assert "32.5% of the price" in target.read_text().splitlines()[1]
    planned = CliRunner().invoke(main, ["plan", str(target), "--out", str(tmp_path / "out"), "--no-measure"])
    assert planned.exit_code == 0, planned.output
    assert "32% of the price without drafts" in planned.output
    again = calibrate(many, trials, *GIVEN, "--to", target, settings=EIGHT)
    refused(again, "is there already")


def test_where_nothing_keeps_enough_it_says_so_and_writes_nothing(many, tmp_path, monkeypatch):
    no_models(monkeypatch)
    trials, target = tmp_path / "trials.jsonl", tmp_path / "drafted.yaml"
    filled(many, trials, *EIGHT, noise=1e6)
    result = calibrate(many, trials, *GIVEN, "--to", target, settings=EIGHT)
    assert result.exit_code == 1, result.output
    assert "no cascade is shown to keep 90% of the gain by clip for less than the full price\nthe most is  " in result.output
    assert not target.exists()
    assert "not written" in result.output
    few = calibrate(many, trials, *GIVEN, "--requests", "8", settings=EIGHT)
    assert "8 requests can show 88.9% at most, whatever they keep; 90% needs 9" in few.output


def test_cascades_that_cost_as_much_as_all_in_full_are_not_chosen_and_not_shown(manifest, tmp_path, monkeypatch):
    no_models(monkeypatch)
    two = ("defaults.candidates=2",)
    filled(manifest, tmp_path / "trials.jsonl", *two)
    result = calibrate(manifest, tmp_path / "trials.jsonl", "--drafts", "10", "--no-previews", settings=two)
    assert result.exit_code == 1, result.output
    assert "drafts: none keeps anything for less than all in full" in result.output


def test_where_nothing_is_gained_it_says_so_and_its_json_is_json(manifest, tmp_path, monkeypatch):
    no_models(monkeypatch)
    sources = look(load("embedded", [f"manifest={manifest}", *EIGHT]))
    notes = Notes(tmp_path / "trials.jsonl", identity(sources))
    for placed in draw(sources, 12).requests:
        sights = {"final": Sight([3.0] * 8, [40] * 8), "draft 4": Sight([3.0] * 8, [8] * 8)}
        notes.add(placed, sights, {"clip": [3.0] * 8})
    asked = ("--drafts", "4", "--no-previews")
    result = calibrate(manifest, tmp_path / "trials.jsonl", *asked, settings=EIGHT)
    assert result.exit_code == 1, result.output
    assert "ranking by clip is not shown to gain anything here" in result.output
    said = calibrate(manifest, tmp_path / "trials.jsonl", *asked, "--json", settings=EIGHT)

    def no_constants(name):
        raise AssertionError(name)

    assert json.loads(said.stdout, parse_constant=no_constants)["drafts"][0]["gain"]["clip"]["value"] is None


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
    refused(
        calibrate(manifest, trials, "--drafts", "6,9"),
        "no cascade with drafts of 6, 9 steps fits: steps: 6 are not more than the 9 of a draft",
    )
    refused(calibrate(manifest, trials, "--sampler", "eular"), "did you mean 'euler'")
    there = tmp_path / "there.yaml"
    there.write_text("mine: 1\n")
    refused(calibrate(manifest, trials, "--to", there), "is there already")
    assert there.read_text() == "mine: 1\n"
    refused(calibrate(manifest, trials, "--to", tmp_path / "nowhere" / "x.yaml"), "is no folder")
    refused(calibrate(manifest, trials, "--to", tmp_path / "x.txt"), "a config ends in .yaml")
    refused(
        calibrate(manifest, whole[0], *TRIED, settings=(*SMALL, "seed=5")),
        "trials of another config, model or version: config.seed: was 0, is 5",
    )
    junk = tmp_path / "junk.jsonl"
    junk.write_text("hello\n")
    refused(calibrate(manifest, junk, *TRIED), "not a file of trials")
    assert junk.read_text() == "hello\n"
    assert not trials.exists()


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        ({}, ("defaults.candidates=1",), "nothing to rank"),
        ({"candidates": 8}, ("defaults.candidates=1",), "leave nobody out of defaults.candidates 1"),
        ({"steps": 30, "candidates": 8}, ("defaults.steps=4",), "steps: 4 are not more than the 6 of a draft"),
    ],
)
def test_a_config_whose_defaults_go_with_no_draft_is_refused_before_anything_is_rendered(
    tmp_path, monkeypatch, row, settings, said
):
    no_models(monkeypatch)
    own = tmp_path / "manifest.jsonl"
    own.write_text("".join(json.dumps({"prompt": "x", **row}) + "\n" for _ in range(3)))
    refused(calibrate(own, tmp_path / "trials.jsonl", "--drafts", "6", settings=settings), said)
    assert not (tmp_path / "trials.jsonl").exists()


def test_rows_that_were_not_drawn_have_their_say_in_what_is_tried(many, tmp_path, monkeypatch):
    no_models(monkeypatch)
    own = tmp_path / "manifest.jsonl"
    own.write_text(many.read_text() + json.dumps({"id": "short", "prompt": "x", "steps": 5}) + "\n")
    filled(own, tmp_path / "trials.jsonl", *EIGHT)
    result = calibrate(own, tmp_path / "trials.jsonl", *GIVEN, settings=EIGHT)
    assert "4 steps" in result.output
    assert "6 steps keep" not in result.output
    assert "left out     drafts of 6 steps: steps: 5 are not more than the 6" in result.output


@pytest.mark.parametrize("pays", [True, False])
def test_drafts_by_samplers_with_noise_of_their_own_are_allowed_only_where_they_pay(many, tmp_path, monkeypatch, pays):
    no_models(monkeypatch)
    noisy = ("defaults.scheduler=euler_a", *EIGHT)
    trials, target = tmp_path / "trials.jsonl", tmp_path / "drafted.yaml"
    filled(many, trials, *noisy, noise=0.0 if pays else 1e6)
    result = calibrate(many, trials, *GIVEN, "--to", target, settings=noisy)
    assert result.exit_code == (0 if pays else 1), result.output
    assert ("add noise of their own" in result.output) == target.exists() == pays
    if pays:
        assert yaml.safe_load(target.read_text())["ranking"]["drafts_stochastic"] is True
    assert "x0 previews" not in result.output


class Broken:
    """An engine and scorers of which one runs out of memory."""

    def __init__(self, where):
        self.where, self.closed = where, False

    def submit(self, unit):
        done = Future()
        if self.where == "engine":
            done.set_exception(FatalError("out of memory at batch 16; set model.batch lower"))
        else:
            candidate = Candidate(0, 0, np.zeros((8, 8, 3), np.uint8), 1)
            done.set_result(Rendered((Outcome(0, (candidate,)),)))
        return done

    def score(self, prompts, images):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    def close(self):
        self.closed = True


@pytest.mark.parametrize(("where", "said"), [("engine", "model.batch lower"), ("scorers", "set ranking.batch or")])
def test_where_memory_runs_out_is_one_line(manifest, tmp_path, monkeypatch, where, said):
    broken = Broken(where)
    monkeypatch.setattr(observing, "_loaded", lambda sources: (broken, broken))
    refused(calibrate(manifest, tmp_path / "trials.jsonl", *TRIED), said)
    assert broken.closed


def test_a_request_that_cannot_be_rendered_is_left_out_and_named(many, tmp_path, monkeypatch):
    no_models(monkeypatch)
    own = tmp_path / "manifest.jsonl"
    lost = {"id": "lost", "prompt": "x", "init_image": "nowhere.png"}
    own.write_text(many.read_text() + "".join(json.dumps(row) + "\n" for row in (lost, {"prompt": 7})))
    filled(own, tmp_path / "trials.jsonl", *EIGHT)
    result = calibrate(own, tmp_path / "trials.jsonl", *GIVEN, settings=EIGHT)
    assert result.exit_code == 0, result.output
    assert "60 of 61 requests" in result.output
    assert "left out     lost: init_image: " in result.output
    assert "left out     rows that make no request: 1" in result.output
