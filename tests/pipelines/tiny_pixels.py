"""Tiny models of families that read prompts and denoise pixels, and of the first latent diffusion model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

from tests.pipelines import tiny, tiny_texts
from tests.pipelines.tiny_parts import made, qwen3, seeded, t5

WIDTH = 32  # of text embeddings


def _unet(**options: Any) -> Any:
    """A UNet of pixels in the manner of DeepFloyd IF, that predicts the noise's variance, too."""
    return made(
        "UNet2DConditionModel",
        out_channels=6,
        sample_size=32,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=32,
        encoder_hid_dim=WIDTH,
        attention_head_dim=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        **options,
    )


def _parts() -> dict[str, Any]:
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True, dynamic_thresholding_ratio=0.95
    )
    left_out = dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"))
    texts = {"text_encoder": t5(WIDTH), "tokenizer": tiny_texts.words(most=77)}
    return {**texts, **left_out, "scheduler": scheduler, "requires_safety_checker": False}


def deepfloyd(folder: Path) -> Path:
    """DeepFloyd IF, its first stage."""
    diffusers.IFPipeline(**_parts(), unet=_unet(in_channels=3)).save_pretrained(folder)
    return folder


def deepfloyd_upscaler(folder: Path) -> Path:
    """DeepFloyd IF, its second stage: the UNet is given the small picture, with noise of a level that the UNet is told."""
    unet = _unet(in_channels=6, class_embed_type="timestep")
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    diffusers.IFSuperResolutionPipeline(**_parts(), unet=unet, image_noising_scheduler=noising).save_pretrained(folder)
    return folder


def ldm(folder: Path) -> Path:
    """The latent diffusion model that came before Stable Diffusion: a VAE called vqvae, texts by a transformer of its own."""
    config = LDMBertConfig(
        vocab_size=32, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2, head_dim=16, d_model=WIDTH
    )
    pipeline = diffusers.LDMTextToImagePipeline(
        vqvae=tiny.vae(),
        bert=seeded(LDMBertModel, config),
        tokenizer=tiny_texts.words(most=77),
        unet=tiny.unet(cross=WIDTH),
        scheduler=tiny.ddim(),
    )
    pipeline.save_pretrained(folder)
    return folder


def prx_pixel(folder: Path) -> Path:
    """PRXPixel: a transformer that predicts the pixels of an image, by patches."""
    transformer = made(
        "PRXTransformer2DModel",
        patch_size=8,
        in_channels=3,
        context_in_dim=16,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[8, 8],
        bottleneck_size=16,
        resolution_embeds=True,
    )
    encoder = qwen3()
    assert isinstance(encoder, transformers.Qwen3Model)
    parts = (transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), encoder, tiny_texts.words(most=64))
    diffusers.PRXPixelPipeline(*parts).save_pretrained(folder)
    return folder


PIXELS: dict[str, Callable[[Path], Path]] = {
    "if": deepfloyd,
    "if-upscaler": deepfloyd_upscaler,
    "ldm": ldm,
    "prx-pixel": prx_pixel,
}
