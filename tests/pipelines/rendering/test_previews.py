"""Previews: a trajectory left early shows what it was thought to end in, costs what was rendered of it, and disturbs nobody."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from promptmill.configs.schedulers import SCHEDULERS
from promptmill.pipelines.rendering.previews import ending_after, predicted
from promptmill.pipelines.work.units import Placed, Unit
from tests.pipelines.plain import MODES, request

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNCLIPPED = ("ddim", "ddpm", "lcm", "tcd")  # that would else clip latents to -1 … 1, as if they were pictures


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_of_a_model_that_knows_the_picture_every_scheduler_predicts_it_at_every_step(name, kind):
    known = SCHEDULERS[name]
    options = {**BETAS, **known.options, "prediction_type": kind, **({"clip_sample": False} if name in UNCLIPPED else {})}
    scheduler = getattr(diffusers, known.class_name)(**options)
    scheduler.set_timesteps(6)
    torch.manual_seed(0)
    picture, noise = torch.randn(2, 2, 4, 8, 8)
    # Of the second order every other step is of a sample that only the sampler itself knows.
    for timestep in scheduler.timesteps[: 3 if scheduler.order == 1 else 1]:
        sample = scheduler.add_noise(picture, noise, timestep.expand(len(picture)))
        alpha = float(scheduler.alphas_cumprod[int(timestep)]) ** 0.5
        said = noise if kind == "epsilon" else alpha * noise - (1 - alpha**2) ** 0.5 * picture
        made = scheduler.step(said, timestep, sample, return_dict=False)
        np.testing.assert_allclose(predicted(scheduler, said, timestep, sample, made), picture, atol=0.02)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_of_a_model_with_the_noise_of_edm_too(name, kind):
    scheduler = getattr(diffusers, name)(prediction_type=kind)
    scheduler.set_timesteps(6)
    torch.manual_seed(0)
    picture, noise = torch.randn(2, 2, 4, 8, 8)
    for number, timestep in enumerate(scheduler.timesteps[:3]):
        sigma = scheduler.sigmas[number]
        sample = picture + sigma * noise
        skip, out = scheduler.precondition_outputs(1, 0, sigma), scheduler.precondition_outputs(0, 1, sigma)
        said = (picture - skip * sample) / out
        made = scheduler.step(said, timestep, sample, return_dict=False)
        np.testing.assert_allclose(predicted(scheduler, said, timestep, sample, made), picture, atol=1e-3)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_of_a_model_of_flows_too(name):
    flow = {} if name.startswith("Flow") else {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = getattr(diffusers, name)(**flow)
    scheduler.set_timesteps(6)
    torch.manual_seed(0)
    picture, noise = torch.randn(2, 2, 4, 8, 8)
    for number, timestep in enumerate(scheduler.timesteps[:3]):
        sigma = float(scheduler.sigmas[number])
        sample, said = sigma * noise + (1 - sigma) * picture, noise - picture
        made = scheduler.step(said, timestep, sample, return_dict=False)
        np.testing.assert_allclose(predicted(scheduler, said, timestep, sample, made), picture, atol=1e-3)


def test_what_a_model_predicts_that_nobody_knows_is_an_error():
    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type="dreams"), sigmas=[1.0, 0.5], step_index=1)
    with pytest.raises(ValueError, match="that predicts dreams"):
        predicted(scheduler, torch.ones(1), 0, torch.ones(1), (torch.ones(1),))


def unit_of(*some):
    return Unit(0, 0, tuple(replace(placed, row=row) for row, placed in enumerate(some)))


def made_of(outcome):
    assert outcome.failure is None, outcome
    return outcome.candidates


@pytest.fixture(params=["engine", "flux"])
def any_path(request):
    return request.getfixturevalue(request.param)


def test_a_preview_costs_the_steps_that_were_rendered_and_finals_beside_it_are_what_they_are_alone(any_path):
    wanted = request(steps=8, candidates=3, scheduler="euler")
    alone = made_of(any_path.render(unit_of(Placed(0, wanted))).outcomes[0])
    early, final, late = any_path.render(
        unit_of(Placed(0, wanted, preview=2), Placed(1, wanted), Placed(2, wanted, preview=6))
    ).outcomes
    for before, after in zip(alone, made_of(final), strict=True):
        np.testing.assert_array_equal(before.pixels, after.pixels)
    assert [c.evaluations * 2 // 8 for c in alone] == [c.evaluations for c in made_of(early)]
    assert [c.evaluations * 6 // 8 for c in alone] == [c.evaluations for c in made_of(late)]
    assert [c.seed for c in made_of(early)] == [c.seed for c in alone]
    for sooner, later, end in zip(made_of(early), made_of(late), alone, strict=True):
        assert far(sooner, end) > 0
        assert far(later, end) > 0


def far(one, other):
    return np.abs(one.pixels.astype(int) - other.pixels).mean()


@pytest.mark.parametrize("mode", [name for name in MODES if " " not in name])
def test_in_every_mode_a_preview_is_nearer_to_its_final_the_later_it_is(shapes, mode):
    wanted = request(
        mode,
        steps=12,
        candidates=1,
        prompt="a large red circle at the left on a blue background",
        scheduler="dpmpp_2m",
        **{"mode": mode, **MODES[mode]},
    )
    at = (2, 6, 11)
    *previews, final = shapes.render(unit_of(*(Placed(0, wanted, preview=n) for n in at), Placed(0, wanted))).outcomes
    distances = [np.mean([far(*pair) for pair in zip(made_of(p), made_of(final), strict=True)]) for p in previews]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 2


@pytest.mark.parametrize("name", SCHEDULERS)
def test_by_every_sampler_a_preview_is_the_same_again_early_ones_are_pictures_and_late_ones_the_final_nearly(shapes, name):
    wanted = request(steps=12, candidates=1, prompt="a large red circle at the left on a blue background", scheduler=name)
    at = (3, 11, 11)
    *previews, final = shapes.render(unit_of(*(Placed(0, wanted, preview=n) for n in at), Placed(0, wanted))).outcomes
    early, late, again = (np.mean([far(*pair) for pair in zip(made_of(p), made_of(final), strict=True)]) for p in previews)
    for one, other in zip(made_of(previews[1]), made_of(previews[2]), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert late == again < early
    assert late < (14 if name in ("pndm", "lcm", "kdpm2_a") else 4)
    # The noisy latents themselves, decoded, are 40 levels and more away.
    # What kdpm2_a adds late changes the final itself: diffusers' own has flaws that its previews have not.
    assert early < (48 if name == "kdpm2_a" else 32)


def test_a_pipeline_that_takes_other_steps_than_its_schedulers_says_so():
    with (
        pytest.raises(ValueError, match="SimpleNamespace cannot be left before its end"),
        ending_after(3, SimpleNamespace(scheduler=diffusers.DDIMScheduler(), __call__=lambda: None)),
    ):
        pass
