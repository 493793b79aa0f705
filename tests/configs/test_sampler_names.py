"""That names of other tools' samplers mean the schedulers that those tools run."""

import pytest

from promptmill.configs.sampler_names import AUTOMATIC, SAMPLERS, Sampler, sampler_of
from promptmill.configs.schedulers import OWN, SCHEDULERS

# Names as A1111, Forge, ComfyUI, InvokeAI, NovelAI and kohya write them, each with what it means.
NAMES = {
    "Euler a": "euler_a",
    "euler_ancestral": "euler_a",
    "k_euler_a": "euler_a",
    "DPM++ 2M Karras": "dpmpp_2m_karras",
    "dpmpp_2m_k": "dpmpp_2m_karras",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "DPM++ 2M SDE Karras": "dpmpp_2m_sde_karras",
    "DPM++ SDE": "dpmpp_sde",
    "DPM2": "kdpm2",
    "dpm_2": "kdpm2",
    "kdpm_2_a": "kdpm2_a",
    "k_dpm_2_a": "kdpm2_a",
    "DPM2 a": "kdpm2_a",
    "uni_pc_bh2": "unipc",
    "UniPC": "unipc",
    "PLMS": "pndm",
    "LMS Karras": "lms_karras",
    "lms_k": "lms_karras",
    "dpmsolver++": "dpmpp_2m",
    "DDIM": "ddim",
    "LCM": "lcm",
    "Heun": "heun",
    "deis": "deis",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_the_scheduler_that_its_tool_runs(name):
    assert sampler_of(name) == Sampler(NAMES[name])
    assert sampler_of(f" {name.upper()} ") == Sampler(NAMES[name])


@pytest.mark.parametrize("name", [*SCHEDULERS, OWN])
def test_promptmills_own_names_mean_themselves(name):
    assert sampler_of(name) == Sampler(name)


def test_the_table_leads_to_schedulers_that_there_are():
    assert {scheduler for scheduler in SAMPLERS.values() if scheduler} <= set(SCHEDULERS)
    assert set(AUTOMATIC) <= set(SAMPLERS)


@pytest.mark.parametrize("name", [name for name, scheduler in SAMPLERS.items() if scheduler is None])
def test_a_sampler_without_a_counterpart_is_known_to_have_none(name):
    assert sampler_of(name) == Sampler(None) and sampler_of(name, "karras") == Sampler(None)


@pytest.mark.parametrize(
    ("name", "spacing", "found"),
    [
        ("dpmpp_2m", "karras", Sampler("dpmpp_2m_karras")),
        ("DPM++ 2M", "Karras", Sampler("dpmpp_2m_karras")),
        ("DPM++ 2M", "Automatic", Sampler("dpmpp_2m_karras")),
        ("Euler", "Automatic", Sampler("euler")),
        ("DPM++ 2M SDE", "Automatic", Sampler("dpmpp_2m_sde", spaced=False)),
        ("Euler a", "Karras", Sampler("euler_a", spaced=False)),
        ("euler", "sgm_uniform", Sampler("euler", spaced=False)),
        ("euler", "normal", Sampler("euler")),
    ],
)
def test_how_sigmas_are_spaced_is_a_part_of_the_name_where_a_scheduler_has_it(name, spacing, found):
    assert sampler_of(name, spacing) == found


def test_other_words_are_no_samplers():
    for name in ("", "frobnicate", "euler b", "karras"):
        assert sampler_of(name) == Sampler(None, known=False)
