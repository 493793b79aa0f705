"""Trains stage 6, the flow family's ControlNet for segmentation maps, on the frozen transformer (Zhang et al. 2023)."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3ControlNetModel, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from promptmill.embedded.controlnet import control_maps, prompt_for_control
from promptmill.embedded.flow import TIMESTEPS, CountedAttention, FlowDenoiser, draw_sigma
from promptmill.embedded.training import DEVICE, Draw, Recipe
from promptmill.embedded.unet import BATCH, Corpus, encode

RECIPE = Recipe(steps=1000, learning_rate=1.5e-3, warmup=50, decay=0.5, ema=0.995, seed=8)
LAYERS = 2  # each steers half of the transformer's blocks
KIND = "seg"


def build(transformer: SD3Transformer2DModel) -> SD3ControlNetModel:
    """Return a ControlNet whose blocks begin as copies of the transformer's first ones.

    The network takes maps as the ControlNet pipeline makes them, encoded by the autoencoder: (B, 4, 16, 16) fp32 latents.
    """
    model = SD3ControlNetModel.from_transformer(transformer, num_layers=LAYERS, num_extra_conditioning_channels=0)
    model.set_attn_processor(CountedAttention())
    # What the last block makes of the text goes nowhere, so these weights have no gradient.
    last = model.transformer_blocks[-1]
    last.attn.to_add_out.requires_grad_(False)
    last.ff_context.requires_grad_(False)
    return model


def map_latents(vae: AutoencoderKL, corpus: Corpus, cache: Path) -> Tensor:
    """Return the encoded segmentation maps of a corpus, (N, 4, 16, 16) fp32 on the CPU, from `cache` where that file exists."""
    if cache.exists():
        return load_file(cache)["maps"]
    batches = (range(i, min(i + 64, len(corpus))) for i in range(0, len(corpus), 64))
    maps = torch.cat([encode(vae, control_maps(KIND, corpus.pictures(rows))).cpu() for rows in batches]).contiguous()
    save_file({"maps": maps}, cache.with_suffix(".tmp"))
    cache.with_suffix(".tmp").replace(cache)
    return maps


def flow_control_loss(
    model: SD3ControlNetModel, denoiser: FlowDenoiser, corpus: Corpus, maps: Tensor, draw_of_step: Draw
) -> Tensor:
    """Return the mean squared error of the predicted velocity, as for the transformer, with the ControlNet's residuals added."""
    rows = draw_of_step.numpy.integers(len(corpus), size=BATCH)
    latents, control = (rows_of[torch.from_numpy(rows)].to(DEVICE) for rows_of in (corpus.latents, maps))
    with torch.no_grad():
        text, pooled = denoiser.encode([prompt_for_control(corpus.scenes[i], draw_of_step.numpy) for i in rows])
    noise, sigma = draw_of_step.normal(*latents.shape), draw_sigma(BATCH, draw_of_step)
    inputs = {
        "hidden_states": latents.lerp(noise, sigma.view(-1, 1, 1, 1)),
        "encoder_hidden_states": text,
        "timestep": TIMESTEPS * sigma,
        "return_dict": False,
    }
    # The pipeline gives zeros for the pooled text, by the config's force_zeros_for_pooled_projection.
    (residuals,) = model(**inputs, pooled_projections=torch.zeros_like(pooled), controlnet_cond=control)
    (predicted,) = denoiser.transformer(**inputs, pooled_projections=pooled, block_controlnet_hidden_states=residuals)
    return F.mse_loss(predicted, noise - latents)
