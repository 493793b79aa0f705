import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmill.configs.schedulers import SCHEDULERS
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering import slots
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.rendering.preparing import Conditioning, jobs_of
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, request

REQUESTS = st.builds(
    lambda mode, seed, **values: request(seed=seed, prompt=f"a circle {seed}", **{"mode": mode, **MODES[mode], **values}),
    mode=st.sampled_from(sorted(MODES)),
    seed=st.integers(0, 5),
    steps=st.integers(2, 4),
    guidance_scale=st.sampled_from([1.0, 2.0, 7.0]),
    scheduler=st.sampled_from(sorted(SCHEDULERS)),
    candidates=st.integers(1, 4),
    negative_prompt=st.sampled_from(["", "blue"]),
)


@settings(max_examples=12)
@given(st.lists(REQUESTS, min_size=2, max_size=6))
def test_in_any_mixture_each_image_is_the_one_rendered_alone(engine, some):
    some = [replace(one, id=str(i)) for i, one in enumerate(some)]
    alone = [pixels(render(engine, one)[0]) for one in some]
    for outcome, wanted in zip(render(engine, *some), alone, strict=True):
        np.testing.assert_array_equal(pixels(outcome), wanted)


def test_units_from_several_threads_share_the_batch_and_keep_their_bits(engine):
    units = [Unit(0, n, tuple(Placed(row, request(f"{n}-{row}", steps=3 + n)) for row in range(3))) for n in range(2)]
    alone = [engine.render(unit).outcomes for unit in units]
    calls = engine.path.denoiser.calls
    engine.render(units[0])
    engine.render(units[1])
    apart = engine.path.denoiser.calls - calls
    made = {}
    threads = [
        threading.Thread(target=lambda unit=unit: made.update({unit.number: engine.render(unit).outcomes})) for unit in units
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for unit, outcomes in zip(units, alone, strict=True):
        for mine, theirs in zip(made[unit.number], outcomes, strict=True):
            np.testing.assert_array_equal(pixels(mine), pixels(theirs))
    assert engine.path.denoiser.calls - calls - apart <= apart


def test_a_mixed_queue_keeps_the_batch_full(engine):
    slots: Slots = engine.path
    slots.denoiser.calls = slots.denoiser.rows = 0
    modes = ["txt2img", "img2img", "inpaint"]
    some = [
        request(f"r{i}", steps=2 + i % 7, scheduler=["ddim", "euler"][i % 2], **{"mode": modes[i % 3], **MODES[modes[i % 3]]})
        for i in range(60)
    ]
    render(engine, *some)
    assert slots.share > 0.97


@pytest.fixture
def breaking(engine, monkeypatch):
    """An engine in which requests by LMS raise at their first step."""
    real = engine.model.scheduler

    def scheduler(name):
        made = real(name)
        if name == "lms":

            def step(*args, **kwargs):
                raise ValueError("breaks at its first step")

            made.step = step
        return made

    monkeypatch.setattr(engine.model, "scheduler", scheduler)
    return engine


def test_a_request_that_raises_in_the_middle_leaves_its_neighbours_their_bits(engine, breaking):
    some = [request(f"r{i}", steps=3 + i, scheduler="ddim") for i in range(3)]
    calm = [pixels(outcome) for outcome in render(engine, *some)]
    broken = request("broken", scheduler="lms", candidates=2)
    *rest, outcome = render(breaking, *some, broken)
    assert outcome.failure.code == "render_error"
    assert "breaks at its first step" in outcome.failure.message
    for made, wanted in zip(rest, calm, strict=True):
        np.testing.assert_array_equal(pixels(made), wanted)


def test_requests_of_two_units_that_raise_together_are_told_apart_though_their_rows_have_one_number(breaking):
    first = breaking.submit(Unit(0, 0, (Placed(0, request("first", candidates=BATCH, steps=4)),)))
    # In one group, as soon as the first unit leaves the batch.
    broken = [Unit(shard, 0, (Placed(0, request(f"broken {shard}", scheduler="lms", candidates=1)),)) for shard in range(2)]
    pending = [breaking.submit(unit) for unit in broken]
    assert first.result(60).outcomes[0].failure is None
    for one in pending:
        assert one.result(60).outcomes[0].failure.code == "render_error"


@pytest.mark.parametrize("part", ["denoiser", "text"])
def test_a_batch_that_raises_fails_the_request_at_fault_and_no_other_whose_rows_were_in_it(engine, monkeypatch, part):
    some = [request(f"r{i}", prompt=f"a circle {i}", steps=3 + i, seed=i, candidates=2) for i in range(3)]
    calm = [pixels(outcome) for outcome in render(engine, *some)]
    joined = engine.path.denoiser if part == "denoiser" else engine.path.texts[0].joined
    run, shown = joined.run, "encoder_hidden_states" if part == "denoiser" else "input_ids"
    seen = []
    monkeypatch.setattr(joined, "run", lambda **given: seen.append(given[shown]) or run(**given))
    engine.path.texts[0]._kept.clear()
    render(engine, request("broken", prompt="a square", guidance_scale=1.0, candidates=1))
    wrong = seen[0][0]

    def raising(**given):
        if any(torch.equal(row, wrong) for row in given[shown]):
            raise ValueError("a square is too much")
        return run(**given)

    monkeypatch.setattr(joined, "run", raising)
    engine.path.texts[0]._kept.clear()
    broken = request("broken", prompt="a square", guidance_scale=1.0, candidates=2)
    *rest, outcome = render(engine, *some, broken)
    assert (outcome.failure.code, "a square is too much" in outcome.failure.message) == ("render_error", True)
    for made, wanted in zip(rest, calm, strict=True):
        np.testing.assert_array_equal(pixels(made), wanted)
    engine.path.texts[0]._kept.clear()


class LateCopy:
    """Images on their way to a host that has not got them until somebody waits, or the engine has asked a few times."""

    def __init__(self, *tensors):
        self.tensors, self.asked, self.waited = tensors, 0, False

    @property
    def done(self):
        self.asked += 1
        return self.waited or self.asked > 3

    def wait(self):
        self.waited = True


def test_the_denoiser_goes_on_while_images_are_copied(folder, monkeypatch):
    slots = Engine(model_of(folder), JOB_SEED, Roots((str(folder),)))
    some = [request(f"r{i}", steps=3 + i % 3, seed=i) for i in range(6)]
    usual = [pixels(outcome) for outcome in render(slots, *some)]
    batches, copies = slots.path.denoiser.calls, []
    meanwhile = []
    monkeypatch.setattr(
        "promptmill.pipelines.rendering.calls.to_host", lambda *tensors: copies.append(LateCopy(*tensors)) or copies[-1]
    )
    run_batch = slots.path.denoiser.run_batch
    slots.path.denoiser.run_batch = lambda: meanwhile.append(len(slots.path._copies)) or run_batch()
    late = [pixels(outcome) for outcome in render(slots, *some)]
    np.testing.assert_array_equal(late, usual)
    assert slots.path.denoiser.calls == 2 * batches
    assert any(meanwhile) and all(copy.waited for copy in copies) and not slots.path._copies


def test_the_next_group_begins_while_the_last_batch_of_the_one_before_is_computed(engine, monkeypatch):
    path, events = engine.path, []
    for holder, name in ((path.denoiser, "run_batch"), (path, "_start"), (path, "_go_on")):
        run = getattr(holder, name)
        monkeypatch.setattr(holder, name, lambda *args, run=run, name=name: events.append(name) or run(*args))
    some = [request(f"r{i}", prompt=f"a circle {i}", steps=3, scheduler="euler", seed=i, candidates=BATCH) for i in range(3)]

    def begun_at_once():
        events.clear()
        made = [pixels(outcome) for outcome in render(engine, *some)]
        return made, events.count("run_batch"), [*itertools.pairwise(events)].count(("run_batch", "_start"))

    path._evaluations_seen.clear()
    made, batches, at_once = begun_at_once()
    again, as_many, all_at_once = begun_at_once()
    assert (at_once, all_at_once) == (1, 2)  # the first group shows how often the others will call the denoiser
    assert batches == as_many == 9
    np.testing.assert_array_equal(made, again)


def test_images_of_many_pixels_are_decoded_fewer_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(slots, "DECODED_PIXELS", 2 * 64 * 64)
    path, decoded = Slots(load_model(model_of(folder, controlnets={})), BATCH), []
    run = path.decoder.run
    path.decoder.run = lambda **given: decoded.append(tuple(given["z"].shape)) or run(**given)
    try:
        for width, rows in ((64, 2), (128, 1)):
            decoded.clear()
            one = Placed(0, request(candidates=BATCH, width=width))
            with torch.no_grad():
                assert not path.run(jobs_of(one, Conditioning(), JOB_SEED))
            assert len(decoded) == -(-BATCH // rows) and {shape[0] for shape in decoded} == {rows}
    finally:
        path.close()
