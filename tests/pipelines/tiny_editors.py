"""Tiny models of families that edit pictures, and of families distilled to few steps, as `tiny_families` has the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.pipelines import tiny, tiny_texts
from tests.pipelines.tiny_families import flux_parts, sana_parts
from tests.pipelines.tiny_parts import WIDTH, made, seeded, t5


def fill(folder: Path) -> Path:
    """Flux Fill: inpainting by a transformer that is given the masked picture's latents (16 channels) and the mask (256)."""
    diffusers.FluxFillPipeline(**flux_parts(16 + 16 + 256)).save_pretrained(folder)
    return folder


def control(folder: Path) -> Path:
    """Flux Control: a transformer that is given the latents of a control image, of depth or edges, beside those of the image."""
    diffusers.FluxControlPipeline(**flux_parts(16 + 16)).save_pretrained(folder)
    return folder


def kontext(folder: Path) -> Path:
    """Flux Kontext: a picture's latents stand behind those of the image, as more tokens."""
    diffusers.FluxKontextPipeline(**flux_parts()).save_pretrained(folder)
    return folder


def _flux2_parts(guided: bool) -> dict[str, Any]:
    transformer = made(
        "Flux2Transformer2DModel",
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=[4, 4, 4, 4],
        timestep_guidance_channels=32,
        guidance_embeds=guided,
    )
    return {"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "vae": flux2_vae(), "transformer": transformer}


def flux2_vae() -> diffusers.AutoencoderKLFlux2:
    return seeded(
        diffusers.AutoencoderKLFlux2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )


def klein(folder: Path, distilled: bool = False) -> Path:
    """FLUX.2 klein: latents normalised by a VAE's own statistics, the outputs of three layers of Qwen 3, and references."""
    config = transformers.Qwen3Config(
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=32,
    )
    encoder = seeded(transformers.Qwen3ForCausalLM, config)
    parts = _flux2_parts(guided=False) | {"text_encoder": encoder, "tokenizer": tiny_texts.words(chat=True)}
    diffusers.Flux2KleinPipeline(**parts, is_distilled=distilled).save_pretrained(folder)
    return folder


def flux2(folder: Path) -> Path:
    """FLUX.2 dev: the same with Mistral 3, a processor in place of a tokenizer, and the guidance scale as an input."""
    encoder = seeded(transformers.Mistral3ForConditionalGeneration, mistral3(layers=31))
    words = tiny_texts.words(chat=True)
    marks = {"image_token": "<image>", "image_break_token": "</s>", "image_end_token": "</s>"}
    processor = transformers.PixtralProcessor(transformers.PixtralImageProcessor(), words, chat_template=tiny_texts.PARTED, **marks)
    parts = _flux2_parts(guided=True) | {"text_encoder": encoder, "tokenizer": processor}
    diffusers.Flux2Pipeline(**parts).save_pretrained(folder)
    return folder


def mistral3(layers: int) -> transformers.Mistral3Config:
    return transformers.Mistral3Config(
        text_config={
            "model_type": "mistral",
            "hidden_size": WIDTH,
            "intermediate_size": 16,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": 32,
        },
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 32,
            "patch_size": 16,
        },
        image_token_index=3,
    )


def sprint(folder: Path) -> Path:
    """Sana Sprint: few steps of consistency in time, the guidance scale as an input."""
    parts = sana_parts(qk_norm="rms_norm_across_heads", guidance_embeds=True)
    diffusers.SanaSprintPipeline(**parts, scheduler=diffusers.SCMScheduler()).save_pretrained(folder)
    return folder


def lcm(folder: Path) -> Path:
    """A latent consistency model as its own pipeline has it: the UNet is given the guidance scale."""
    parts = (tiny.vae(), tiny.text_encoder(WIDTH), tiny.tokenizer(), tiny.unet(time_cond_proj_dim=8))
    scheduler = diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    diffusers.LatentConsistencyModelPipeline(*parts, scheduler, None, None, requires_safety_checker=False).save_pretrained(folder)
    return folder


def cogview3(folder: Path) -> Path:
    """CogView3-Plus: T5, and a scheduler of its own."""
    transformer = made(
        "CogView3PlusTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=32,
        condition_dim=16,
        pos_embed_max_size=16,
        sample_size=8,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    parts = (tiny_texts.words(), t5(WIDTH), tiny.vae(), transformer, scheduler)
    diffusers.CogView3PlusPipeline(*parts).save_pretrained(folder)
    return folder


EDITORS: dict[str, Callable[[Path], Path]] = {
    "flux-fill": fill,
    "flux-control": control,
    "flux-kontext": kontext,
    "flux2-dev": flux2,
    "flux2-klein": klein,
    "flux2-klein-distilled": lambda folder: klein(folder, distilled=True),
    "sana-sprint": sprint,
    "lcm": lcm,
    "cogview3": cogview3,
}
