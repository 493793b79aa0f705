from types import SimpleNamespace

import pytest
import torch

from promptmill.pipelines.rendering.calls import call
from promptmill.pipelines.rendering.preparing import Conditioning, Job
from promptmill.pipelines.rendering.text import TextEncoder
from promptmill.pipelines.work.units import Placed
from tests.pipelines import plain


def made(count):
    return SimpleNamespace(images=torch.rand(count, 3, 64, 64))


class Flux2LikePipeline:
    """Takes no negative prompt."""

    components = {"transformer": None}  # noqa: RUF012

    def __call__(self, prompt, width, height, num_inference_steps, guidance_scale, generator, output_type):
        return made(len(prompt))


class PixArtLikePipeline:
    """Takes one."""

    components = {"transformer": None}  # noqa: RUF012
    said = None

    def __call__(self, prompt, negative_prompt, **options):
        self.said = negative_prompt
        return made(len(prompt))


def jobs():
    request = plain.request(guidance_scale=4.0, negative_prompt="ugly")
    return [Job(Placed(0, request), Conditioning(), index, index) for index in range(2)]


@pytest.mark.parametrize("kind", [Flux2LikePipeline, PixArtLikePipeline])
def test_a_pipeline_is_given_only_what_it_takes(kind):
    pipeline = kind()
    text = TextEncoder(SimpleNamespace(base=pipeline, clip_skip=0, device=torch.device("cpu")), 2)
    results = call(pipeline, text, jobs())
    assert [(pixels.shape, finite, refused) for pixels, finite, refused in results] == [((64, 64, 3), True, False)] * 2
    if kind is PixArtLikePipeline:
        assert pipeline.said == ["ugly", "ugly"]
