"""The shipped flow family against the truth, on few cases: enough to notice a broken family, in CI's time."""

import numpy as np
import pytest
import torch
from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline, StableDiffusion3Pipeline

from promptmill.embedded import evaluate
from promptmill.embedded.flow_sampling import FlowFamily
from promptmill.embedded.tokenizer import build_tokenizer
from promptmill.embedded.weights import WEIGHTS, sha256

WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module")
def family():
    return FlowFamily()


def figures(measured):
    return {figure.what: figure.value for figure in measured}


def test_the_libraries_load_the_weights_unmodified_and_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipeline = StableDiffusion3Pipeline.from_pretrained(WEIGHTS / "flow", **WITHOUT_T5)
    parts = (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    controlnet = SD3ControlNetModel.from_pretrained(WEIGHTS / "flow-controlnet-seg")
    StableDiffusion3ControlNetPipeline.from_pretrained(WEIGHTS / "flow", controlnet=controlnet, **WITHOUT_T5)


def test_both_tokenizers_and_the_autoencoder_are_those_of_the_first_family(family):
    for tokenizer in (family.text.tokenizer, family.text.tokenizer_2):
        assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    file = "vae/diffusion_pytorch_model.safetensors"
    assert sha256(WEIGHTS / "flow" / file) == sha256(WEIGHTS / "pipeline" / file)


def test_pictures_follow_their_prompts(family):
    measured = figures(evaluate.measure_txt2img(family, 8, candidates=1))
    assert measured["txt2img, one object, 20 steps"] >= 0.8
    assert measured["txt2img, two objects, 20 steps"] >= 0.65


def test_the_controlnet_controls(family):
    with_map, without = figures(evaluate.measure_control(family, "seg", 8)).values()
    assert with_map >= 0.6 and without <= 0.35


def test_img2img_keeps_the_layout_at_low_strength_and_moves_away_with_more(family):
    kept, lost, *steps = figures(evaluate.measure_img2img(family, 6)).values()
    assert kept >= 0.8 and lost <= 0.5
    assert all(step > 0 for step in steps)


def test_both_text_encoders_say_something(family):
    """Either prompt alone, with the other one empty, makes another picture than both do."""
    prompt = "a large red circle at the left on a green background"
    both, first, second = (
        np.asarray(family.text(one, two, num_inference_steps=4, generator=torch.Generator().manual_seed(1)).images[0]).astype(int)
        for one, two in ((prompt, prompt), (prompt, " "), (" ", prompt))
    )
    assert np.abs(both - first).max() > 8 and np.abs(both - second).max() > 8


def test_a_picture_depends_on_its_seed_alone(family):
    prompts = ["a small red circle at the left on a green background", "a large blue cross at the top on a white background"]
    together = family.txt2img(prompts, [5, 6])
    swapped = family.txt2img(prompts[::-1], [6, 5])
    assert (together == swapped[::-1]).all()
