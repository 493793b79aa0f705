"""Tiny models of families that take no prompt: they draw classes, whatever they were trained on, or variations of a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import transformers

from tests.pipelines import tiny
from tests.pipelines.tiny_parts import image_encoder, made


def _unet(**options: Any) -> Any:
    """A UNet of pixels, of images of 32 x 32."""
    return made(
        "UNet2DModel",
        sample_size=32,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        downsample_padding=0,
        **options,
    )


def consistency(folder: Path) -> Path:
    """A consistency model of ten classes."""
    unet = _unet(num_class_embeds=10, resnet_time_scale_shift="scale_shift")
    scheduler = diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    diffusers.ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder


def ddpm(folder: Path) -> Path:
    diffusers.DDPMPipeline(unet=_unet(), scheduler=diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def ddim(folder: Path) -> Path:
    diffusers.DDIMPipeline(unet=_unet(), scheduler=diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder


def dit(folder: Path) -> Path:
    """DiT: classes as ImageNet has them, whose number diffusers knows, and latents of a VAE."""
    transformer = made(
        "DiTTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    diffusers.DiTPipeline(transformer=transformer, vae=tiny.vae(), scheduler=diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder


def variations(folder: Path) -> Path:
    """Stable Diffusion's image variations: the UNet is told the embedding of a picture in place of a text's."""
    pipeline = diffusers.StableDiffusionImageVariationPipeline(
        vae=tiny.vae(),
        image_encoder=image_encoder(),
        unet=tiny.unet(cross=32),
        scheduler=tiny.ddim(),
        safety_checker=None,
        feature_extractor=transformers.CLIPImageProcessor(size=32, crop_size=32),
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def upscaler(folder: Path) -> Path:
    """The upscaler of latent diffusion: the UNet is given the small picture, and its VAE looks up vectors of a table."""
    vae = made(
        "VQModel",
        block_out_channels=[32, 32, 32],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        latent_channels=3,
        num_vq_embeddings=64,
        norm_num_groups=8,
    )
    unet = _unet(in_channels=6, out_channels=3)
    diffusers.LDMSuperResolutionPipeline(vqvae=vae, unet=unet, scheduler=diffusers.DDIMScheduler()).save_pretrained(folder)
    return folder


UNPROMPTED: dict[str, Callable[[Path], Path]] = {
    "consistency": consistency,
    "ddpm": ddpm,
    "ddim": ddim,
    "dit": dit,
    "image-variation": variations,
    "ldm-upscaler": upscaler,
}
