"""SDXL in fp16, whose VAE its pipelines lift to fp32: they share the VAE, and none may see where another has left it."""

import numpy as np
import pytest
import torch

from promptmill.configs.model import Model
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, render_plain, request

SOME = [
    request("text", scheduler="euler", steps=3, candidates=1),
    request("longer", scheduler="euler", steps=4, candidates=1, prompt="a large blue square"),
    request("image", scheduler="euler", candidates=1, **{"mode": "img2img", **MODES["img2img"]}),
    request("part", scheduler="euler", candidates=1, **{"mode": "inpaint", **MODES["inpaint"]}),
]


@pytest.fixture(scope="module")
def half(folder, made):
    """The tiny SDXL, whose config asks for a VAE in fp32, in fp16."""
    return Engine(Model(base=str(made("sdxl")), batch=BATCH, dtype="float16"), JOB_SEED, Roots((str(folder),)))


def test_the_vae_computes_in_fp32_whatever_a_pipeline_converts_it_to(half):
    vae = half.model.base.vae
    assert vae.config.force_upcast and vae.dtype == torch.float16
    for dtype in (torch.float32, torch.float16):
        vae.to(dtype=dtype)
        assert {parameter.dtype for parameter in vae.parameters()} == {torch.float32}
    assert half.model.base.unet.dtype == torch.float16


@pytest.mark.parametrize("one", SOME, ids=lambda one: one.id)
def test_an_image_is_that_of_plain_diffusers_in_fp16(half, folder, made, one):
    wanted = request(
        **{name: getattr(one, name) for name in ("mode", "scheduler", "steps", "init_image", "mask_image", "strength")},
        candidates=BATCH,
    )
    theirs = render_plain(wanted, BATCH, made("sdxl"), {}, folder, torch.float16, "StableDiffusionXL")
    np.testing.assert_array_equal(pixels(render(half, wanted)[0]), theirs)


@pytest.fixture(scope="module")
def lifting_nothing(folder):
    """The tiny Stable Diffusion in fp16, whose config asks for a VAE in fp32 as well."""
    return Engine(model_of(folder, controlnets={}, dtype="float16"), JOB_SEED, Roots((str(folder),)))


@pytest.mark.parametrize("one", SOME, ids=lambda one: one.id)
def test_stable_diffusion_whose_pipelines_lift_nothing_computes_in_fp16_throughout(lifting_nothing, folder, one):
    assert lifting_nothing.model.base.vae.config.force_upcast
    values = {name: getattr(one, name) for name in ("mode", "scheduler", "steps", "init_image", "mask_image", "strength")}
    wanted = request(**values, candidates=BATCH)
    theirs = render_plain(wanted, BATCH, folder / "sd", {}, folder, torch.float16)
    np.testing.assert_array_equal(pixels(render(lifting_nothing, wanted)[0]), theirs)


def test_among_others_an_image_is_the_one_rendered_alone(half):
    together = [pixels(outcome) for outcome in render(half, *SOME)]
    backwards = [pixels(outcome) for outcome in render(half, *SOME[::-1])][::-1]
    for one, mixed, turned in zip(SOME, together, backwards, strict=True):
        alone = pixels(render(half, one)[0])
        np.testing.assert_array_equal(mixed, alone, err_msg=one.id)
        np.testing.assert_array_equal(turned, alone, err_msg=one.id)
