"""The flow family's own training code: what it takes for granted of the pipeline, and that it goes on after a kill."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from safetensors import safe_open
from torch.nn import functional as F

from promptmill.embedded import flow_controlnet, weights
from promptmill.embedded.flow import EMPTY_TOKENS, SAMPLER, SHIFT, CountedAttention, FlowDenoiser, draw_sigma, load, save
from promptmill.embedded.training import Draw
from tests.warm import Forked, started

ROOT = Path(__file__).parents[2]
PROMPTS = ["a small red circle at the left on a green background", ""]
STEPS = 3


@pytest.fixture
def model():
    """A model whose every weight matters, the modulations too, which training begins at zero."""
    torch.manual_seed(0)
    model = FlowDenoiser().eval()
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def forward(net, text, pooled, **more):
    generator = torch.Generator().manual_seed(1)
    latents, times = torch.randn((2, 4, 16, 16), generator=generator), torch.tensor([900.0, 30.0])
    with torch.no_grad():
        given = {"hidden_states": latents, "timestep": times, "encoder_hidden_states": text, "pooled_projections": pooled}
        return net(**given, **more, return_dict=False)[0]


def padded(text):
    """Text as the pipeline makes it: the last token again and again."""
    return F.pad(text[:, :-1], (0, 0, 0, EMPTY_TOKENS))


def test_one_counted_token_is_as_good_as_all_the_tokens_of_zeros(model):
    with torch.no_grad():
        text, pooled = model.encode(PROMPTS)
    assert (text[:, -1] == 0).all()
    counted = forward(model.transformer, text, pooled)
    model.transformer.set_attn_processor(JointAttnProcessor2_0())
    plain = forward(model.transformer, padded(text), pooled)
    torch.testing.assert_close(counted, plain, rtol=1e-4, atol=1e-4)
    alone = forward(model.transformer, text, pooled)
    assert (alone - plain).abs().max() > 0.05, "the tokens of zeros weigh nothing, so nothing was shown"


def test_the_counted_token_is_exact_in_the_controlnet_too(model):
    with torch.no_grad():
        text, pooled = model.encode(PROMPTS)
    net = flow_controlnet.build(model.transformer).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    control = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(2))
    counted = forward(net, text, pooled, controlnet_cond=control)
    net.set_attn_processor(JointAttnProcessor2_0())
    for one, other in zip(counted, forward(net, padded(text), pooled, controlnet_cond=control), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_new_controlnet_changes_nothing(model):
    with torch.no_grad():
        text, pooled = model.encode(PROMPTS)
    net = flow_controlnet.build(model.transformer).eval()
    residuals = forward(net, text, pooled, controlnet_cond=torch.ones(2, 4, 16, 16))
    assert len(residuals) == flow_controlnet.LAYERS and all((residual == 0).all() for residual in residuals)


def test_a_new_transformer_predicts_nothing_yet():
    model = FlowDenoiser().eval()
    with torch.no_grad():
        text, pooled = model.encode(PROMPTS)
    assert (forward(model.transformer, text, pooled) == 0).all()


def test_prompts_are_encoded_as_the_pipeline_encodes_them(model, tmp_path):
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline

    with torch.no_grad():
        text, pooled = (part.half().float() for part in model.encode(PROMPTS))
    save(model, AutoencoderKL.from_pretrained(weights.WEIGHTS / "pipeline" / "vae"), tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None)
    with torch.no_grad():
        said, _, said_pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    assert said.dtype == torch.float32
    torch.testing.assert_close(said, padded(text), rtol=0.01, atol=0.01)  # they were stored in fp16
    torch.testing.assert_close(said_pooled, pooled, rtol=0.01, atol=0.01)
    again = load(tmp_path).eval()
    assert isinstance(again.transformer.transformer_blocks[0].attn.processor, CountedAttention)
    for one, other in zip(pipeline.transformer.parameters(), again.transformer.parameters(), strict=True):
        assert torch.equal(one, other)
    written = "".join(path.read_text() for path in tmp_path.rglob("*config.json"))
    assert "_name_or_path" not in written and str(tmp_path) not in written


def test_training_draws_the_noise_that_the_sampler_walks_through():
    sigma = draw_sigma(20_000, Draw.of(3, 0))
    assert sigma.dtype == torch.float32 and sigma.min() >= 0 and sigma.max() < 1
    half = SHIFT * 0.5 / (1 + (SHIFT - 1) * 0.5)
    assert (sigma < half).float().mean() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(draw_sigma(4, Draw.of(3, 1)), draw_sigma(4, Draw.of(3, 1)))


def start_training(folder: Path) -> Forked:
    vae = folder / "weights" / "pipeline" / "vae"
    if not vae.exists():
        vae.parent.mkdir(parents=True)
        vae.symlink_to(weights.WEIGHTS / "pipeline" / "vae")
    command = ["flow", "--steps", str(STEPS), "--save-every", "0"]
    command += ["--pictures", "64", "--runs", str(folder / "runs"), "--weights", str(folder / "weights")]
    return started("train", command)


def steps_done(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    with safe_open(checkpoint, "pt") as file:
        return json.loads(file.metadata()["state"])["done"]


@pytest.mark.timeout(600)
def test_the_stage_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert start_training(calm).wait(timeout=250) == 0
    process = start_training(killed)
    while steps_done(killed / "runs" / "flow.safetensors") < 1:
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert start_training(killed).wait(timeout=250) == 0

    written = [path.relative_to(calm) for path in (calm / "weights" / "flow").rglob("*.safetensors")]
    assert len(written) == 4
    for path in [*written, Path("weights") / weights.SUMS]:
        assert (calm / path).read_bytes() == (killed / path).read_bytes(), path


def test_the_shipped_sampler_is_the_one_that_training_saves():
    shipped = json.loads((weights.WEIGHTS / "flow/scheduler/scheduler_config.json").read_text(encoding="utf-8"))
    assert SAMPLER.items() <= shipped.items()
