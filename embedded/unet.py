"""Trains stage 3, the UNet and its CLIP text encoder together, to denoise latents of the world under its prompts."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from promptmill.embedded.autoencoder import to_tensor
from promptmill.embedded.pictures import Pictures, draw
from promptmill.embedded.tokenizer import CONTEXT, build_tokenizer
from promptmill.embedded.training import DEVICE, Draw, Recipe
from promptmill.embedded.world import Scene, describe, sample_scene, without

RECIPE = Recipe(steps=4600, learning_rate=1e-3, warmup=300, decay=0.5, weight_decay=0.01, ema=0.999, seed=3)
BATCH = 64
PICTURES = 32_768  # pictures encoded once and drawn from at every step
TWO_OBJECTS = 0.6  # share of pictures with two objects
NO_PROMPT = 0.1  # share of empty prompts, for classifier-free guidance (Ho and Salimans 2022)
SAY_LESS = 0.15  # share of prompts that leave size, place or both unsaid

TOKENIZER = build_tokenizer()
LATENT_SIDE = 16

# The prediction is v (Salimans and Ho 2022). The noise ends stronger than Stable Diffusion's: at its usual end a plain
# background would still show through (signal to noise 0.005 a value, but there are 256 of them), and sampling would start
# from noise that no training step has seen.
NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


# The scheduler that ships: 20 steps of DPM-Solver++ (Lu et al. 2022) from the very end of the noise (Lin et al. 2023).
SAMPLER = {
    **{key: value for key, value in NOISE.items() if key != "clip_sample"},
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


class Denoiser(nn.Module):
    """Holds the two networks that stage 3 trains, the UNet and the text encoder, as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=4,
            out_channels=4,
            block_out_channels=(64, 96, 128),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=128,
            attention_head_dim=4,
            norm_num_groups=16,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(TOKENIZER),
                hidden_size=128,
                intermediate_size=512,
                projection_dim=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                hidden_act="gelu",
                bos_token_id=TOKENIZER.bos_token_id,
                eos_token_id=TOKENIZER.eos_token_id,
                pad_token_id=TOKENIZER.pad_token_id,
            )
        )

    def encode(self, prompts: list[str]) -> Tensor:
        """Encode prompts as hidden states (B, 32, 128) fp32. Each distinct prompt is encoded once."""
        distinct = sorted(set(prompts))
        tokens = TOKENIZER(distinct, padding="max_length", truncation=True, return_tensors="pt").input_ids
        hidden = self.text_encoder(tokens.to(DEVICE)).last_hidden_state
        return hidden[torch.tensor([distinct.index(p) for p in prompts], device=DEVICE)]


class Corpus:
    """Holds pictures of the world, encoded once: scaled latents, their scenes and (for controls) their truth."""

    def __init__(self, vae: AutoencoderKL, count: int, seed: int, cache: Path | None = None):
        rng = np.random.default_rng([seed, 0xC0])
        self.scenes = [sample_scene(rng, things=2 if rng.random() < TWO_OBJECTS else 1) for _ in range(count)]
        self.seed = seed
        if cache and cache.exists():
            self.latents = load_file(cache)["latents"]
        else:
            parts = [encode(vae, self.pictures(range(i, min(i + 64, count))).pixels).cpu() for i in range(0, count, 64)]
            self.latents = torch.cat(parts).contiguous()
            if cache:
                cache.parent.mkdir(parents=True, exist_ok=True)
                save_file({"latents": self.latents}, cache.with_suffix(".tmp"))
                cache.with_suffix(".tmp").replace(cache)

    def __len__(self) -> int:
        return len(self.scenes)

    def pictures(self, rows: Iterable[int]) -> Pictures:
        """Draw the pictures of some rows, each from its own seed: always the same pixels, alone or together."""
        drawn = [draw([self.scenes[i]], np.random.default_rng([self.seed, 1, i])) for i in rows]
        return Pictures(*(np.concatenate([getattr(d, field) for d in drawn]) for field in ("pixels", "coverage", "labels")))


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """Encode pictures, (B, 64, 64, 3) uint8, as scaled latents (B, 4, 16, 16) of about unit variance.

    The latents are the mean of the posterior, without noise.
    """
    return vae.encode(to_tensor(pixels)).latent_dist.mean * vae.config.scaling_factor


def denoising_loss(model: Denoiser, corpus: Corpus, scheduler: DDPMScheduler, draw_of_step: Draw) -> Tensor:
    """Return the mean squared error of the predicted v (Salimans and Ho 2022), a scalar, at uniform timesteps."""
    rows = draw_of_step.numpy.integers(len(corpus), size=BATCH)
    latents = corpus.latents[torch.from_numpy(rows)].to(DEVICE)
    prompts = [prompt_for_training(corpus.scenes[i], draw_of_step.numpy) for i in rows]
    noise = draw_of_step.normal(*latents.shape)
    timesteps = torch.from_numpy(draw_of_step.numpy.integers(scheduler.config.num_train_timesteps, size=BATCH)).to(DEVICE)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = model.unet(noisy, timesteps, model.encode(prompts)).sample
    return F.mse_loss(predicted, scheduler.get_velocity(latents, noise, timesteps))


def prompt_for_training(scene: Scene, rng: np.random.Generator) -> str:
    """Return the scene's prompt, now and then an empty prompt or one that leaves size or place unsaid."""
    chance = rng.random()
    if chance < NO_PROMPT:
        return ""
    if chance < NO_PROMPT + SAY_LESS:
        return describe(without(scene, *(("size",), ("place",), ("size", "place"))[rng.integers(3)]))
    return describe(scene)
