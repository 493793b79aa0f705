"""Options of schedulers that a config sets: images are those of plain diffusers with a scheduler that was made with them."""

import numpy as np
import pytest

from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.engine import Engine
from tests.pipelines.engines import BATCH, model_of, pixels, render
from tests.pipelines.plain import JOB_SEED, MODES, render_plain, request
from tests.pipelines.plain_calls import render_family
from tests.pipelines.plain_families import FAMILIES
from tests.pipelines.tiny_families import MAKERS

NOISE = [
    ("sd", "txt2img", "euler", {"timestep_spacing": "trailing"}, None),
    ("sd", "img2img", "dpmpp_2m", {"use_lu_lambdas": True, "solver_order": 3}, None),
    ("sd", "txt2img", "unipc", {"use_beta_sigmas": True}, None),
    ("sd", "inpaint", "dpmpp_sde", {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"}, None),
    ("sd", "txt2img", "ddim", {"clip_sample": True, "clip_sample_range": 0.5}, 0.7),
    ("sd", "txt2img", "tcd", {"original_inference_steps": 20}, 0.3),
    ("sd", "txt2img", "model", {"timestep_spacing": "trailing", "set_alpha_to_one": True}, 1.0),
    ("sd2", "txt2img", "ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, None),
    ("sd", "txt2img", "euler_a", {"prediction_type": "v_prediction", "steps_offset": 0}, None),
    ("playground", "txt2img", "dpmpp_2m_sde", {"sigma_schedule": "exponential", "sigma_max": 60.0}, None),
]


@pytest.mark.parametrize(("model", "mode", "scheduler", "options", "eta"), NOISE)
def test_with_options_images_are_those_of_plain_diffusers_with_a_scheduler_of_these_options(
    made, folder, model, mode, scheduler, options, eta
):
    said = options | ({} if eta is None else {"eta": eta})
    wanted = request(candidates=BATCH, scheduler=scheduler, steps=4, **{"mode": mode, **MODES[mode]})
    family = "StableDiffusionXL" if model == "playground" else "StableDiffusion"
    engine = Engine(
        model_of(folder, base=str(made(model)), controlnets={}, scheduler_options=said), JOB_SEED, Roots((str(folder),))
    )
    theirs = render_plain(wanted, BATCH, made(model), {}, folder, family=family, options=options, eta=eta)
    mine = pixels(render(engine, wanted)[0])
    np.testing.assert_array_equal(mine, theirs)
    assert not np.array_equal(mine, render_plain(wanted, BATCH, made(model), {}, folder, family=family))
    alone = render(engine, request("b", candidates=1, scheduler=scheduler, steps=3), wanted)[1]
    np.testing.assert_array_equal(pixels(alone), theirs)


FLOWS = [
    ("sd3", "euler", {"shift": 5.0}, {"shift": 5.0}),
    ("sd3", "heun", {"shift": 5.0}, {"shift": 5.0}),
    ("sana", "model", {"shift": 7.0}, {"flow_shift": 7.0}),
    ("sana", "unipc", {"shift": 7.0, "solver_order": 1}, {"flow_shift": 7.0, "solver_order": 1}),
    ("flux-dev", "euler", {"use_beta_sigmas": True}, {"use_beta_sigmas": True}),
    ("z-image", "model", {"use_dynamic_shifting": True}, {"use_dynamic_shifting": True}),
    ("qwen-image", "euler", {"shift_terminal": 0.3}, {"shift_terminal": 0.3}),
]


@pytest.mark.parametrize(("name", "scheduler", "options", "theirs"), FLOWS)
def test_the_same_holds_for_schedulers_of_flows(folder, name, scheduler, options, theirs):
    base, plain = folder / f"{name}-options", FAMILIES[name]
    if not base.exists():
        MAKERS[name](base)
    wanted = request(candidates=2, scheduler=scheduler, steps=4)
    engine = Engine(model_of(folder, base=str(base), controlnets={}, scheduler_options=options), JOB_SEED, Roots((str(folder),)))
    mine, count = pixels(render(engine, wanted)[0]), plain.fills(wanted, BATCH)
    np.testing.assert_array_equal(mine, render_family(plain, wanted, count, base, folder, BATCH, options=theirs)[0][:2])
    assert not np.array_equal(mine, render_family(plain, wanted, count, base, folder, BATCH)[0][:2])
