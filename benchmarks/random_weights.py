"""Builds models of real size with random weights, from the published configs: they cost the time and memory of trained ones."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from promptmill.configs.own_files import ROOT

TOKENIZER = ROOT / "embedded" / "weights" / "pipeline" / "tokenizer"


# The configs of UNets, as they are published.
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def unet(name: str, device: torch.device) -> UNet2DConditionModel:
    """Build a UNet of `UNETS` on a device."""
    with torch.device(device):
        return UNet2DConditionModel(**UNETS[name])


def sd15(folder: Path, device: torch.device) -> Path:
    """Build Stable Diffusion 1.5, 860 M parameters of UNet, in a folder, and return its place."""
    with torch.device(device):
        unet = UNet2DConditionModel(**UNETS["sd15"])
        text = CLIPTextModel(_text(768, 12, 12, "quick_gelu"))
        parts = (vae(512, 0.18215), text, _tokenizer(), unet, _scheduler(), None, None)
    StableDiffusionPipeline(*parts, requires_safety_checker=False).to(torch.bfloat16).save_pretrained(folder)
    return folder


def sdxl(folder: Path, device: torch.device) -> Path:
    """Build Stable Diffusion XL base 1.0, 2.6 G parameters of UNet, in a folder, and return its place."""
    with torch.device(device):
        unet = UNet2DConditionModel(**UNETS["sdxl"])
        first = CLIPTextModel(_text(768, 12, 12, "quick_gelu"))
        second = CLIPTextModelWithProjection(_text(1280, 32, 20, "gelu"))
        parts = (vae(1024, 0.13025), first, second, _tokenizer(), _tokenizer(), unet, _scheduler())
    StableDiffusionXLPipeline(*parts, add_watermarker=False).to(torch.bfloat16).save_pretrained(folder)
    return folder


def vae(side: int, scaling: float) -> AutoencoderKL:
    """Build Stable Diffusion's VAE, for images of a side in pixels."""
    options: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    options |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(**options, sample_size=side, scaling_factor=scaling)


def _text(width: int, layers: int, heads: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        projection_dim=width,
        hidden_act=act,
    )


def _tokenizer() -> CLIPTokenizer:
    """Return the embedded family's tokenizer, told to make texts as long as the real one does."""
    return CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=77)


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
