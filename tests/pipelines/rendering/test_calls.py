from types import SimpleNamespace

import pytest
import torch

from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.pipelines.models.family import Family
from promptmill.pipelines.rendering.calls import call
from promptmill.pipelines.rendering.preparing import Conditioning, Job
from promptmill.pipelines.work.units import Placed
from tests.pipelines import plain


class Takes:
    """Takes some arguments of a pipeline, keeps them, and makes images of noise."""

    def __init__(self):
        self.said = {}

    def kept(self, **said):
        self.said = said
        return SimpleNamespace(images=torch.rand(len(said["prompt"]), 3, 64, 64))


class WithoutNegative(Takes):
    def __call__(self, prompt, width, height, num_inference_steps, guidance_scale, generator, output_type):
        return self.kept(prompt=prompt, guidance_scale=guidance_scale)


class WithAll(Takes):
    def __call__(self, prompt, negative_prompt=None, guidance_scale=None, true_cfg_scale=None, use_binning=True):
        return self.kept(
            prompt=prompt, negative_prompt=negative_prompt, scales=(guidance_scale, true_cfg_scale), binned=use_binning
        )


def model(family, **options):
    return SimpleNamespace(
        clip_skip=0,
        device=torch.device("cpu"),
        family=family,
        refiner=None,
        prior=None,
        redux=None,
        weighted=None,
        guided=lambda request: request.guidance_scale > family.unguided,
        scheduler_options=SchedulerOptions(**options),
    )


USUAL = Family()


def test_an_eta_that_a_pipeline_does_not_take_is_an_error_and_not_left_out():
    job = Job(Placed(0, plain.request()), Conditioning(), 0, 0)
    with pytest.raises(ValueError, match="WithAll takes no eta"):
        call(WithAll(), model(USUAL, eta=0.5), [job])


def said(pipeline, family=USUAL, **values):
    request = plain.request(**{"guidance_scale": 4.0, "negative_prompt": "ugly", **values})
    results = call(pipeline, model(family), [Job(Placed(0, request), Conditioning(), index, index) for index in range(2)])
    assert [(pixels.shape, finite, refused) for pixels, finite, refused in results] == [((64, 64, 3), True, False)] * 2
    return pipeline.said


class Grey(Takes):
    def __call__(self, prompt):
        return SimpleNamespace(images=torch.rand(len(prompt), 1, 64, 64))


def test_grey_images_have_three_equal_channels():
    jobs = [Job(Placed(0, plain.request()), Conditioning(), index, index) for index in range(2)]
    for pixels, finite, _ in call(Grey(), model(USUAL), jobs):
        assert pixels.shape == (64, 64, 3) and finite
        assert (pixels == pixels[..., :1]).all() and pixels.std() > 0


def test_a_pipeline_is_given_only_what_it_takes():
    assert said(WithoutNegative()) == {"prompt": ["a small red circle"] * 2, "guidance_scale": 4.0}


@pytest.mark.parametrize(
    ("family", "values", "negative", "scales"),
    [
        (Family(), {}, ["ugly"] * 2, (4.0, None)),
        (Family(), {"negative_prompt": ""}, None, (4.0, None)),
        (Family(), {"guidance_scale": 1.0}, None, (1.0, None)),
        (Family(unguided=0.0), {"guidance_scale": 1.0}, ["ugly"] * 2, (1.0, None)),
        (Family(guidance="true_cfg_scale", empty_negative=True), {"negative_prompt": ""}, ["", ""], (None, 4.0)),
        (Family(guidance=None), {}, ["ugly"] * 2, (None, None)),
    ],
)
def test_guidance_and_the_negative_prompt_are_said_as_the_family_takes_them(family, values, negative, scales):
    given = said(WithAll(), family, **values)
    assert (given["negative_prompt"], given["scales"]) == (negative, scales)


def test_prompts_are_never_cleaned_whatever_packages_are_installed():
    class Cleans(Takes):
        def __call__(self, prompt, clean_caption=True):
            return self.kept(prompt=prompt, clean_caption=clean_caption)

    assert said(Cleans())["clean_caption"] is False


def test_what_a_family_always_wants_is_always_said():
    assert said(WithAll(), Family(always={"use_binning": False}))["binned"] is False
