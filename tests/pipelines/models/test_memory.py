"""That a model's memory is counted from files as the loaded model has it."""

import json

import open_clip
import pytest
import torch
from diffusers import DiffusionPipeline

from promptmill.configs.loading import load
from promptmill.configs.own_files import ROOT
from promptmill.pipelines.models.clip_sources import named_configs
from promptmill.pipelines.models.memory import clip_parameters, generator_bytes, scorer_bytes


def parameters(module):
    return sum(one.numel() for one in module.parameters())


@pytest.mark.parametrize("name", ["ViT-S-32", "ViT-S-16-alt"])
def test_the_parameters_of_a_named_clip_are_those_that_open_clip_makes(name):
    config = json.loads(named_configs()[name].read_text())
    assert clip_parameters(config) == parameters(open_clip.create_model(name, load_weights=False))


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "RN50", "ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_towers_of_another_kind_are_not_counted_wrongly(name):
    assert clip_parameters(json.loads(named_configs()[name].read_text())) is None


@pytest.fixture(scope="module")
def embedded():
    pipeline = DiffusionPipeline.from_pretrained(ROOT / "embedded/weights/pipeline", safety_checker=None)
    return sum(parameters(module) for module in pipeline.components.values() if isinstance(module, torch.nn.Module))


def test_a_generators_weights_are_those_of_the_loaded_model_in_its_dtype_beside_the_tensors_of_a_batch(embedded):
    def needed(*settings):
        config = load("embedded", ["model.controlnets={}", "model.annotators={}", "model.loras=[]", *settings])
        return generator_bytes(config.model, config.defaults)

    one, two = needed("model.batch=1"), needed("model.batch=2")
    batch = two - one  # of one row
    assert batch > 0
    assert one - batch == pytest.approx(4 * embedded, rel=0.001)
    assert needed("model.batch=1", "model.dtype=bfloat16") == pytest.approx(one / 2, rel=0.001)
    assert needed("model.batch=1", "model.quantize={unet: int8}") < one
    assert needed("model.offload=true", "model.kernels={}") is None


def test_every_declared_set_of_weights_counts():
    config, plain = load("embedded", []), load("embedded", ["model.controlnets={}"])
    assert generator_bytes(config.model, config.defaults) > generator_bytes(plain.model, plain.defaults)


def test_what_is_not_on_this_machine_is_not_known():
    config = load("sdxl", ["manifest=none.txt"])
    assert generator_bytes(config.model, config.defaults) is None
    unknown = load("embedded", ["ranking.model=hf-hub:owner/clip", f"ranking.revision={40 * 'a'}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("promptmill.pipelines.models.memory.model_config", lambda clip: {})
        assert scorer_bytes(unknown.ranking) is None


def test_a_larger_batch_of_a_scorer_takes_more():
    small, large = (scorer_bytes(load("embedded", [f"ranking.batch={batch}"]).ranking) for batch in (1, 65))
    assert 0 < small < large < 10**9
