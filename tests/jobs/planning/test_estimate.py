import json
from types import SimpleNamespace

import numpy as np
import pytest

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.jobs.planning import estimate
from promptmill.jobs.planning.estimate import measure, worth_measuring
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.jobs.planning.sources import look
from promptmill.pipelines.rendering import engine, gpus
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.results import Candidate, Outcome, Rendered
from tests.pipelines.tiny_stages import kandinsky22


def plan_of(tmp_path, *settings, **row):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"prompt": "a small red circle", "candidates": 1, **row}) + "\n")
    given = [f"manifest={tmp_path / 'manifest.jsonl'}", "model.batch=2", "runtime.check_images=at_run", *settings]
    plan = make_plan(look(load("embedded", given)), str(tmp_path / "out"))
    return plan, read_shard(str(tmp_path / "out"), 0)


def planned(name, *settings):
    """A plan as far as its config goes: nothing is fetched."""
    return SimpleNamespace(config=load(name, settings))


@pytest.fixture
def graphics(monkeypatch):
    def have(number):
        monkeypatch.setattr(gpus, "gpus", lambda: [gpus.Gpu("GPU", "9.0", 1, 1)] * number)

    return have


@pytest.mark.parametrize("preset", ["sd15", "sdxl", "sd15-lcm", "sd15-controlnet"])
def test_a_model_of_the_hub_is_not_fetched_to_be_tried_on_a_cpu(graphics, preset):
    graphics(0)
    assert worth_measuring(planned(preset)).startswith("there is no GPU here, and rendering with ")
    graphics(1)
    assert worth_measuring(planned(preset)) is None


def test_a_small_model_in_folders_is_tried_anywhere(graphics, monkeypatch):
    graphics(0)
    assert worth_measuring(planned("embedded")) is None
    reason = worth_measuring(planned("embedded", "model.controlnets.x.source=o/n", f"model.controlnets.x.revision={'a' * 40}"))
    assert "o/n from the hub" in reason
    size = sum(file.stat().st_size for name in ("pipeline", "controlnet-canny", "controlnet-seg", "annotator-seg")
               for file in (ROOT / "embedded" / "weights" / name).rglob("*.safetensors"))  # fmt: skip
    monkeypatch.setattr(estimate, "SMALL", size)
    assert "GB of weights" in worth_measuring(planned("embedded"))
    monkeypatch.setattr(estimate, "SMALL", size + 1)
    assert worth_measuring(planned("embedded")) is None


def test_a_request_that_cannot_be_rendered_gives_no_estimate(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert measure(*plan_of(tmp_path, init_image="broken.png", strength=0.5)) is None


class Told:
    """An engine whose evaluations take 2 s, cached ones 0.5 s, and whose images take 3 s, on a clock of its own."""

    def __init__(self, model, job_seed, roots, prompts):
        self.clock, self.batch = 0.0, model.batch

    def render(self, unit):
        placed = unit.requests[0]
        request = placed.request
        steps = int(request.steps * (request.strength or 1))
        cached = 2 * sum(placed.cache.answers(step, steps) for step in range(steps)) if placed.cache else 0
        self.clock += self.batch * ((2 * steps - cached) * 2.0 + cached * 0.5 + 3.0)
        Told.now = self.clock
        pixels = np.zeros((64, 64, 3), np.uint8)
        candidates = tuple(Candidate(i, i, pixels, 2 * steps, cached=cached) for i in range(request.candidates))
        return Rendered((Outcome(placed.row, candidates, None, {}, False),), {})


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.3, 0.1, 0.05])
def test_steps_and_images_are_told_apart_at_every_strength(tmp_path, monkeypatch, strength):
    monkeypatch.setattr(engine, "Engine", Told)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: getattr(Told, "now", 0.0))
    Told.now = 0.0
    row = {"init_image": "a.png", "strength": strength, "steps": 100, "width": 64, "height": 64, "candidates": 4}
    plan, shard = plan_of(tmp_path, **row)
    found = measure(plan, shard)
    assert found.seconds == pytest.approx(plan.counts.evaluations * 2.0 + plan.counts.candidates * 3.0)


def test_drafts_are_images_to_decode_too(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Engine", Told)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: getattr(Told, "now", 0.0))
    Told.now = 0.0
    drafts = "ranking.drafts=[{steps: 10, keep: 3}, {steps: 15, keep: 1}]"
    plan, shard = plan_of(tmp_path, drafts, steps=100, width=64, height=64, candidates=8)
    assert plan.counts.evaluations == 2 * (8 * 10 + 3 * 15 + 100)
    assert measure(plan, shard).seconds == pytest.approx(plan.counts.evaluations * 2.0 + (8 + 3 + 1) * 3.0)


def test_cached_evaluations_are_told_at_their_own_price(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Engine", Told)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: getattr(Told, "now", 0.0))
    Told.now = 0.0
    plan, shard = plan_of(tmp_path, "model.kernels.cache={every: 2}", steps=20, width=64, height=64, candidates=4)
    # After a quarter of 20 steps every second of the other 15 is cached.
    assert (plan.counts.evaluations, plan.counts.cached) == (4 * 40, 4 * 16)
    assert measure(plan, shard).seconds == pytest.approx(4 * (24 * 2.0 + 16 * 0.5) + 4 * 3.0)


def test_the_images_of_the_last_stage_take_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "Engine", Told)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: getattr(Told, "now", 0.0))
    Told.now = 0.0
    given = {"width": 64, "height": 64, "candidates": 4, "keep": 2}
    upscale = "{{kind: upscale, source: ./embedded/weights/upscaler, scale: {}}}"
    stages = ("", upscale.format(2), f"{upscale.format(2)}, {upscale.format(2)}")
    disks = [measure(*plan_of(tmp_path / str(number), f"stages=[{some}]", **given)).disk for number, some in enumerate(stages)]
    assert disks[2] - disks[0] == pytest.approx((16 - 1) / (4 - 1) * (disks[1] - disks[0]))
    assert disks[1] > disks[0]
    beside = measure(*plan_of(tmp_path / "beside", f"stages=[{stages[1]}]", "shards.stage0=true", **given)).disk
    assert beside - disks[1] == pytest.approx((disks[1] - disks[0]) / (4 - 1))


def test_a_batch_that_does_not_fit_is_one_line(tmp_path, monkeypatch):
    def full(self, unit):
        raise engine.FatalError("out of memory at batch 2; set model.batch lower")

    monkeypatch.setattr(engine, "Engine", Told)
    monkeypatch.setattr(Told, "render", full)
    with pytest.raises(ModelError, match="out of memory at batch 2"):
        measure(*plan_of(tmp_path))


def test_a_prior_that_takes_no_schedule_of_one_step_is_measured_with_two(tmp_path):
    base = kandinsky22(tmp_path / "kandinsky")
    settings = ["model.controlnets={}", f"model.base={base}", f"model.prior={{source: {base / 'prior'}}}"]
    settings.append("defaults={width: 64, height: 64, steps: 40, prior_steps: 2, scheduler: ddpm, candidates: 1, keep: 1}")
    assert measure(*plan_of(tmp_path, *settings)) is not None
