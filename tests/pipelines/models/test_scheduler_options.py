"""Options of schedulers, checked against diffusers' classes by their source: what has an effect is told from what has none."""

import diffusers
import pytest

from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.configs.schedulers import OWN, SCHEDULERS
from promptmill.pipelines.models.scheduler_options import EDM, class_of, options_of, unfit

VALUES = {
    "timestep_spacing": ("leading", "trailing"),
    "steps_offset": (0, 1),
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_beta_sigmas": (False, True),
    "use_lu_lambdas": (False, True),
    "prediction_type": ("epsilon", "v_prediction"),
    "rescale_betas_zero_snr": (False, True),
    "set_alpha_to_one": (False, True),
    "clip_sample": (False, True),
    "clip_sample_range": (1.0, 2.0),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2),
    "lower_order_final": (False, True),
    "euler_at_final": (False, True),
    "original_inference_steps": (20, 40),
    "shift": (1.0, 3.0),
    "use_dynamic_shifting": (False, True),
    "shift_terminal": (None, 0.1),
    "sigma_min": (0.002, 0.01),
    "sigma_max": (80.0, 60.0),
    "sigma_schedule": ("karras", "exponential"),
}
NOISE, FLOW, OF_EDM = ({"_class_name": f"{name}Scheduler"} for name in ("DDIM", "FlowMatchEulerDiscrete", "EDMEuler"))
CLASSES = sorted({(name, "noise") for kind in SCHEDULERS.values() for name in (kind.class_name,)}) + [
    (name, "EDM") for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
]


@pytest.mark.parametrize(("name", "follows"), CLASSES)
def test_each_option_that_a_scheduler_is_said_to_have_is_one_of_its_config(name, follows):
    kind = getattr(diffusers, name)
    config = kind().config
    has = options_of(name, OF_EDM if follows == EDM else NOISE) - {"eta"}
    assert has
    for option in has:
        for value in VALUES[option]:
            assert value == config[option] or kind.from_config(config, **{option: value}).config[option] == value


def test_what_a_class_takes_and_never_reads_is_no_option_of_it():
    assert "timestep_spacing" in diffusers.LCMScheduler().config
    assert "timestep_spacing" not in options_of("LCMScheduler", NOISE)
    assert "timestep_spacing" in options_of("EulerDiscreteScheduler", NOISE)


@pytest.mark.parametrize(
    ("options", "config", "sized", "wrong"),
    [
        ({}, NOISE, False, {}),
        ({"timestep_spacing": "trailing"}, NOISE, False, {"lcm": "lcm (LCMScheduler) has no option timestep_spacing, which"}),
        (
            {"timestep_spacing": "trailing"},
            FLOW,
            True,
            {"euler": "(FlowMatchEulerDiscreteScheduler) has no option timestep_spacing"},
        ),
        (
            {"eta": 0.5},
            NOISE,
            False,
            {"euler": "has no option eta, which model.scheduler_options sets; it has final_sigmas_type, "},
        ),
        ({"eta": 0.5}, FLOW, False, {"model": "has no option eta"}),
        ({"shift": 3.0}, NOISE, False, {"euler": "has no option shift", "model": "model (DDIMScheduler) has no option shift"}),
        ({"shift": 3.0}, FLOW, False, {}),
        (
            {"shift": 3.0},
            FLOW | {"use_dynamic_shifting": True},
            True,
            {"euler": "takes no shift while use_dynamic_shifting is true"},
        ),
        ({"shift": 3.0, "use_dynamic_shifting": False}, FLOW | {"use_dynamic_shifting": True}, True, {"heun": "no option use_dyn"}),
        ({"use_dynamic_shifting": True}, FLOW, False, {"euler": "is not told the size of images"}),
        (
            {"use_beta_sigmas": True},
            NOISE,
            False,
            {"euler_karras": "has use_karras_sigmas by its name, with which use_beta_sigmas"},
        ),
        ({"use_karras_sigmas": False}, NOISE, False, {"unipc_karras": "is use_karras_sigmas: True by its name, and model"}),
        (
            {"use_beta_sigmas": True},
            NOISE | {"use_karras_sigmas": True},
            False,
            {"euler": "has use_karras_sigmas by the model's own config, with which use_beta_sigmas of"},
        ),
        (
            {"use_beta_sigmas": True, "use_karras_sigmas": False},
            NOISE | {"use_karras_sigmas": True},
            False,
            {"ddim": "has no option use_karras_sigmas or use_beta"},
        ),
        ({"sigma_schedule": "karras"}, OF_EDM, False, {}),
        ({"sigma_schedule": "karras"}, NOISE, False, {"euler": "has no option sigma_schedule"}),
        ({"solver_order": 1}, OF_EDM, False, {"euler": "has no option solver_order"}),
    ],
)
def test_schedulers_with_which_options_do_not_go_are_told_in_a_line_each(options, config, sized, wrong):
    names = [name for name in (*SCHEDULERS, OWN) if class_of(name, config)]
    found = unfit(SchedulerOptions(**options), names, config, sized)
    for name, says in wrong.items():
        assert says in found[name] and "\n" not in found[name]
    assert bool(found) == bool(wrong)
    if options == {"timestep_spacing": "trailing"} and config is NOISE:
        assert set(found) == {"lcm", "tcd", "dpmpp_2s", "dpmpp_2s_karras", "dpmpp_sde", "dpmpp_sde_karras"}


def test_of_several_ways_to_space_sigmas_there_is_one():
    with pytest.raises(ValueError, match="use_karras_sigmas and use_beta_sigmas do not go together"):
        SchedulerOptions(use_karras_sigmas=True, use_beta_sigmas=True)
    with pytest.raises(ValueError, match="sigma_min 3 is not below sigma_max 2"):
        SchedulerOptions(sigma_min=3, sigma_max=2)
