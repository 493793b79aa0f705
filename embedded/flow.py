"""Trains stage 5, a flow transformer in Stable Diffusion 3's layout with its two CLIP text encoders (Esser et al. 2024)."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from promptmill.embedded.tokenizer import CONTEXT
from promptmill.embedded.training import DEVICE, Draw, Recipe
from promptmill.embedded.unet import BATCH, LATENT_SIDE, TOKENIZER, Corpus, prompt_for_training

RECIPE = Recipe(steps=4500, learning_rate=1.5e-3, warmup=300, decay=0.5, weight_decay=0.01, ema=0.999, seed=7)

WIDTH = 96
HEADS = 6
LAYERS = 6
PATCH = 2  # latents; a picture is 64 tokens
TEXT_WIDTH = 64
TEXT_LAYERS = 2  # of each encoder; the pipeline takes hidden states from before the last one

# StableDiffusion3Pipeline appends so many tokens of zeros where a pipeline has no T5 encoder (its max_sequence_length).
EMPTY_TOKENS = 256

TIMESTEPS = 1000  # the transformer is told 1000 sigma
# Training draws sigma more often near the noise, where a plain background is decided.
SHIFT = 2.0
# The shipped sampler walks there less often, so that img2img of a strength of 0.3 begins with 39% of noise, not with 46%, and keeps
# more of its picture.
SAMPLER = {"num_train_timesteps": TIMESTEPS, "shift": 1.5}


class FlowDenoiser(nn.Module):
    """Holds the three networks that stage 5 trains, the transformer and both text encoders, as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = SD3Transformer2DModel(
            sample_size=LATENT_SIDE,
            patch_size=PATCH,
            in_channels=4,
            out_channels=4,
            num_layers=LAYERS,
            attention_head_dim=WIDTH // HEADS,
            num_attention_heads=HEADS,
            joint_attention_dim=2 * TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=LATENT_SIDE // PATCH,
            qk_norm="rms_norm",
        )
        begin_as_identity(self.transformer)
        self.transformer.set_attn_processor(CountedAttention())
        self.text_encoder, self.text_encoder_2 = _text_encoder(), _text_encoder()

    def encode(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Encode prompts as the pipeline does. Each distinct prompt is encoded once.

        Returns:
            The hidden states (B, 33, 128) fp32, whose last token stands for all the tokens of zeros (see `CountedAttention`), and
            the pooled projections (B, 128) fp32.
        """
        distinct = sorted(set(prompts))
        tokens = TOKENIZER(distinct, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(DEVICE)
        outputs = [e(tokens, output_hidden_states=True) for e in (self.text_encoder, self.text_encoder_2)]
        hidden = torch.cat([o.hidden_states[-2] for o in outputs], dim=-1)
        pooled = torch.cat([o.text_embeds for o in outputs], dim=-1)
        rows = torch.tensor([distinct.index(p) for p in prompts], device=DEVICE)
        return F.pad(hidden, (0, 0, 0, 1))[rows], pooled[rows]


def _text_encoder() -> CLIPTextModelWithProjection:
    model = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            hidden_act="gelu",
            bos_token_id=TOKENIZER.bos_token_id,
            eos_token_id=TOKENIZER.eos_token_id,
            pad_token_id=TOKENIZER.pad_token_id,
        )
    )
    # The usual 0.02 is too faint here: the hidden states that the pipeline takes have passed no final norm.
    nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.3)
    nn.init.normal_(model.text_model.embeddings.position_embedding.weight, std=0.1)
    return model


def begin_as_identity(transformer: SD3Transformer2DModel) -> None:
    """Set every modulation and the last projection to zero: blocks begin by passing their input on (Peebles and Xie 2023)."""
    for module in transformer.modules():
        if isinstance(module, AdaLayerNormZero | AdaLayerNormContinuous):
            nn.init.zeros_(module.linear.weight)
            nn.init.zeros_(module.linear.bias)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)


class CountedAttention:
    """Computes SD3's joint attention over a text whose last token stands for `count` equal tokens.

    The pipeline's tokens of zeros have no positions, so all of them are equal in every layer. A key that counts `count` times in a
    softmax is a key whose logit is larger by log(count), and training pays for one token instead of 256.
    """

    def __init__(self, count: int = EMPTY_TOKENS) -> None:
        self.bias = math.log(count)

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        assert encoder_hidden_states is not None, "joint attention has a text"
        pictures = hidden_states.shape[1]

        def split(values: Tensor, norm: nn.Module | None = None) -> Tensor:
            heads = values.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return norm(heads) if norm is not None else heads

        own = (
            split(attn.to_q(hidden_states), attn.norm_q),
            split(attn.to_k(hidden_states), attn.norm_k),
            split(attn.to_v(hidden_states)),
        )
        text = (
            split(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q),
            split(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k),
            split(attn.add_v_proj(encoder_hidden_states)),
        )
        query, key, value = (torch.cat(pair, dim=2) for pair in zip(own, text, strict=True))
        bias = query.new_zeros(1, 1, 1, key.shape[2])
        bias[..., -1] = self.bias
        bias = bias.expand(1, 1, query.shape[2], -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        seen, said = mixed[:, :pictures], mixed[:, pictures:]
        return attn.to_out[0](seen), said if attn.context_pre_only else attn.to_add_out(said)


def draw_sigma(count: int, draw_of_step: Draw) -> Tensor:
    """Draw how much of each sample is noise, (B,) fp32 in [0, 1): uniform, then shifted towards the noise."""
    even = torch.from_numpy(draw_of_step.numpy.random(count, dtype="float32"))
    return (SHIFT * even / (1 + (SHIFT - 1) * even)).to(DEVICE)


def flow_loss(model: FlowDenoiser, corpus: Corpus, draw_of_step: Draw) -> Tensor:
    """Return the mean squared error of the predicted velocity, noise minus latents (Lipman et al. 2023), a scalar."""
    rows = draw_of_step.numpy.integers(len(corpus), size=BATCH)
    latents = corpus.latents[torch.from_numpy(rows)].to(DEVICE)
    text, pooled = model.encode([prompt_for_training(corpus.scenes[i], draw_of_step.numpy) for i in rows])
    noise, sigma = draw_of_step.normal(*latents.shape), draw_sigma(BATCH, draw_of_step)
    predicted = model.transformer(
        hidden_states=latents.lerp(noise, sigma.view(-1, 1, 1, 1)),
        timestep=TIMESTEPS * sigma,
        encoder_hidden_states=text,
        pooled_projections=pooled,
    ).sample
    return F.mse_loss(predicted, noise - latents)


def load(folder: Path) -> FlowDenoiser:
    """Load a `FlowDenoiser` from the folder that `save` wrote, in fp32, with the attention that counts the last token."""
    model = FlowDenoiser()
    model.transformer.load_state_dict(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"))
    model.text_encoder.load_state_dict(load_file(folder / "text_encoder" / "model.safetensors"))
    model.text_encoder_2.load_state_dict(load_file(folder / "text_encoder_2" / "model.safetensors"))
    return model


def save(model: FlowDenoiser, vae: AutoencoderKL, folder: Path) -> None:
    """Write the pipeline of a trained model into `folder`, in the layout that StableDiffusion3Pipeline loads, in fp16.

    The autoencoder is the first family's, with the one value more in its config that this pipeline wants. The configs of the text
    encoders say fp32: transformers loads a file in the precision that the config says, where diffusers loads fp32.
    """
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    shifted = AutoencoderKL(**{**config, "shift_factor": 0.0})
    shifted.load_state_dict(vae.state_dict())
    pipeline = StableDiffusion3Pipeline(
        transformer=model.transformer.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(**SAMPLER),
        vae=shifted.half(),
        text_encoder=model.text_encoder.half(),
        tokenizer=TOKENIZER,
        text_encoder_2=model.text_encoder_2.half(),
        tokenizer_2=TOKENIZER,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder)
    for name in ("text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        config = {**json.loads(path.read_text()), "dtype": "float32"}
        path.write_text(json.dumps(config, indent=2) + "\n")
