"""A sample of `benchmarks.equality`, which compares every scheduler, mode and dtype: the engine makes diffusers' own bits."""

import inspect

import diffusers
import numpy as np
import pytest
import torch

from promptmill.configs.model import Model
from promptmill.configs.own_files import ROOT
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.configs.weights import Weights
from promptmill.manifests.images import Roots
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.rendering.engine import Engine
from promptmill.pipelines.rendering.preparing import Conditioning, Job
from promptmill.pipelines.work.units import Placed
from tests.pipelines.engines import BATCH, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, render_plain, request


def check(folder, base, nets=None, dtype="float32", family="StableDiffusion", **values):
    """One request, a batch full of candidates, by the engine and by diffusers' pipeline of its mode."""
    nets = nets or {}
    sources = {name: Weights(source=str(net)) for name, net in nets.items()}
    engine = Engine(Model(base=str(base), batch=BATCH, controlnets=sources, dtype=dtype), JOB_SEED, Roots((str(folder),)))
    guided = engine.path._guided(Job(Placed(0, request(**values)), Conditioning(), 0, 0))
    # A candidate without guidance takes one row of the denoiser's batch, which then holds twice as many.
    number = BATCH if guided else 2 * BATCH
    wanted = request(candidates=number, negative_prompt="blue", **values)
    theirs = render_plain(wanted, number, base, nets, folder, getattr(torch, dtype), family, decoded=BATCH)
    np.testing.assert_array_equal(pixels(render(engine, wanted)[0]), theirs)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_allowed_scheduler_makes_the_bits_of_diffusers(engine, folder, scheduler):
    wanted = request(candidates=BATCH, scheduler=scheduler, steps=4, **{"mode": "img2img", **MODES["img2img"]})
    theirs = render_plain(wanted, BATCH, folder / "sd", {}, folder)
    np.testing.assert_array_equal(pixels(render(engine, wanted)[0]), theirs)


def test_schedulers_together_make_the_bits_that_each_of_them_makes_alone(engine):
    names = ("dpmpp_sde", "kdpm2_a", "tcd", "dpmpp_2s", "sa_solver", "euler", "unipc_karras", "dpmpp_2m_sde_karras")
    some = [request(name, candidates=1, scheduler=name, steps=3 + n % 3) for n, name in enumerate(names)]
    together = [pixels(outcome) for outcome in render(engine, *some)]
    for one, mixed in zip(some, together, strict=True):
        np.testing.assert_array_equal(mixed, pixels(render(engine, one)[0]), err_msg=one.id)


@pytest.mark.parametrize(
    "own", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "LCMScheduler", "DPMSolverMultistepScheduler"]
)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_can_be_made_of_the_config_of_another(engine, monkeypatch, own, name):
    monkeypatch.setattr(engine.model, "_scheduler_config", dict(getattr(diffusers, own)().config))
    engine.model.scheduler(name).set_timesteps(4)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_makes_the_bits_of_diffusers_in_bf16(folder, mode):
    nets = {name: folder / name for name in ("canny", "seg")} if "control" in mode else {}
    check(folder, folder / "sd", nets, "bfloat16", **{"mode": mode, **MODES[mode]})


@pytest.mark.parametrize(
    ("model", "mode", "values"),
    [
        ("sd", "txt2img", {"guidance_rescale": 0.7}),
        ("sd", "txt2img", {"guidance_scale": 1.0}),
        ("sd2", "txt2img", {"scheduler": "dpmpp_2m_karras"}),
        ("sd2", "inpaint", {"scheduler": "heun"}),
        ("distilled", "txt2img", {"scheduler": "lcm", "guidance_scale": 8.5}),
        ("distilled", "img2img", {"scheduler": "lcm", "guidance_scale": 1.5}),
        ("nine", "inpaint", {"scheduler": "euler_a"}),
        ("sdxl", "txt2img", {"guidance_rescale": 0.5, "scheduler": "euler"}),
        ("sdxl", "img2img", {"scheduler": "euler"}),
        ("sdxl", "inpaint", {"guidance_rescale": 0.7, "scheduler": "unipc"}),
        ("sd", "img2img", {"scheduler": "model"}),
        ("playground", "txt2img", {"scheduler": "model"}),
        ("playground", "img2img", {"scheduler": "model"}),
        ("playground", "txt2img", {"scheduler": "euler"}),
        ("playground", "inpaint", {"scheduler": "dpmpp_2m"}),
        ("playground", "img2img", {"scheduler": "dpmpp_2m_sde"}),
    ],
)
def test_every_kind_of_unet_makes_the_bits_of_diffusers(made, folder, model, mode, values):
    family = "StableDiffusionXL" if model in ("sdxl", "playground") else "StableDiffusion"
    check(folder, made(model), family=family, **{"mode": mode, **MODES[mode], **values})


def test_the_embedded_family_makes_the_bits_of_diffusers(folder):
    weights = ROOT / "embedded" / "weights"
    nets = {name: weights / f"controlnet-{name}" for name in ("canny", "seg")}
    check(folder, weights / "pipeline", nets, **{"mode": "controlnet_inpaint", **MODES["controlnet_inpaint"], "steps": 2})


@pytest.mark.parametrize(("model", "controls"), [("sd", True), ("nine", False), ("sdxl", False)])
def test_guidance_is_rescaled_in_those_modes_whose_pipelines_can(made, folder, model, controls):
    nets = {"canny": Weights(source=str(folder / "canny"))} if controls else {}
    config = Model(base=str(made(model)), batch=BATCH, controlnets=nets)
    engine, facts = Engine(config, JOB_SEED, Roots((str(folder),))), read_facts(config)
    can = [
        mode
        for mode in facts.modes
        if "guidance_rescale"
        in inspect.signature(engine.model.pipeline(mode, ["canny"] * ("control" in mode), "ddim").__call__).parameters
    ]
    assert list(facts.rescaled) == can
