"""Tiny models of the families without a UNet, of random weights, each saved as a folder that diffusers loads like any other.

Widths are multiples of 32 where it matters: torch computes the last numbers of a tensor, those that fill no vector of the CPU, by
another formula, so that a narrow row's bits would depend on the row's place.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.pipelines import tiny, tiny_texts
from tests.pipelines.tiny_parts import FLUX_LIKE, WIDTH, gemma, gemma2, made, qwen3, qwen25, seeded, t5, vae, video_vae


def sd3(folder: Path, whole: bool = True, second: int = WIDTH) -> Path:
    """Stable Diffusion 3: two CLIP text encoders, of which the second is so wide, and a T5 that may be left out."""
    transformer = made(
        "SD3Transformer2DModel",
        sample_size=8,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH + second,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH + second,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    clips = [tiny.text_encoder(WIDTH, projected=True), tiny.text_encoder(second, projected=True, act="gelu")]
    texts = {"text_encoder": clips[0], "text_encoder_2": clips[1], "tokenizer": tiny.tokenizer(), "tokenizer_2": tiny.tokenizer()}
    # Texts of T5 are as wide as those of both CLIPs together.
    texts |= {"text_encoder_3": t5(WIDTH + second) if whole else None, "tokenizer_3": tiny_texts.words() if whole else None}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    diffusers.StableDiffusion3Pipeline(transformer, scheduler, vae(16), **texts).save_pretrained(folder)
    return folder


def flux(folder: Path, guided: bool = True) -> Path:
    """Flux: dev takes the guidance scale as an input, schnell none. Its schedule depends on the size."""
    diffusers.FluxPipeline(**flux_parts(guided=guided)).save_pretrained(folder)
    return folder


def flux_parts(channels: int = 16, guided: bool = True) -> dict[str, Any]:
    """The parts of a Flux by their names, of a transformer that is given so many channels and makes those of latents."""
    transformer = made(
        "FluxTransformer2DModel",
        in_channels=channels,
        out_channels=16,
        **FLUX_LIKE,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guided,
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided),
        "vae": vae(4),
        "text_encoder": tiny.text_encoder(WIDTH),
        "tokenizer": tiny.tokenizer(),
        "text_encoder_2": t5(WIDTH),
        "tokenizer_2": tiny_texts.words(),
        "transformer": transformer,
    }


def pixart(folder: Path, sigma: bool = False) -> Path:
    """PixArt-alpha and -Sigma: T5 alone, and schedulers of noise as Stable Diffusion has them."""
    transformer = made(
        "PixArtTransformer2DModel",
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        use_additional_conditions=False,
        num_embeds_ada_norm=1000,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, solver_order=2)
    kind = diffusers.PixArtSigmaPipeline if sigma else diffusers.PixArtAlphaPipeline
    kind(tiny_texts.words(), t5(WIDTH), tiny.vae(), transformer, scheduler).save_pretrained(folder)
    return folder


def sana(folder: Path) -> Path:
    """Sana: a VAE that makes latents 32 times smaller (here 8 times), Gemma 2, and a long instruction before each prompt."""
    # As the released models have it: a multistep solver that is told to follow a flow.
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", flow_shift=3.0, prediction_type="flow_prediction", solver_order=2, use_flow_sigmas=True
    )
    diffusers.SanaPipeline(**sana_parts(), scheduler=scheduler).save_pretrained(folder)
    return folder


def sana_parts(**options: Any) -> dict[str, Any]:
    """The parts of a Sana by their names, but for the scheduler."""
    transformer = made(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=8,
        **options,
    )
    return {"tokenizer": tiny_texts.words(), "text_encoder": gemma2(), "vae": _sana_vae(), "transformer": transformer}


def _sana_vae() -> diffusers.AutoencoderDC:
    sizes = {"block_out_channels": (4, 8, 8, 8), "layers_per_block": (1, 1, 1, 1), "qkv_multiscales": ((), (), (), ())}
    both = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()}
    return seeded(diffusers.AutoencoderDC, latent_channels=4, attention_head_dim=2, scaling_factor=0.41407, **both)


def hunyuandit(folder: Path) -> Path:
    """HunyuanDiT: BERT and T5, and a denoiser that is told the sizes of pictures."""
    transformer = made(
        "HunyuanDiT2DModel",
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=8,
        hidden_size=16,
        text_len=77,
        text_len_t5=256,
        activation_fn="gelu-approximate",
    )
    bert = seeded(
        transformers.BertModel,
        transformers.BertConfig(vocab_size=32, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2),
    )
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.02, steps_offset=1, prediction_type="v_prediction")
    parts = (tiny.vae(), bert, tiny_texts.words(most=77), transformer, scheduler, None, None, False)
    diffusers.HunyuanDiTPipeline(*parts, t5(WIDTH), tiny_texts.words(most=256)).save_pretrained(folder)
    return folder


def auraflow(folder: Path) -> Path:
    """AuraFlow: UMT5, and a transformer that joins text and picture."""
    transformer = made(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    config = transformers.UMT5Config(vocab_size=32, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    encoder = seeded(transformers.UMT5EncoderModel, config)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    diffusers.AuraFlowPipeline(tiny_texts.words(), encoder, tiny.vae(), transformer, scheduler).save_pretrained(folder)
    return folder


def lumina(folder: Path) -> Path:
    """Lumina-Next: Gemma, texts padded to the longest of a call."""
    transformer = made(
        "LuminaNextDiT2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=WIDTH,
    )
    parts = (transformer, FlowMatchEulerDiscreteScheduler(shift=2.0), tiny.vae(), gemma(), tiny_texts.words(side="left"))
    diffusers.LuminaPipeline(*parts).save_pretrained(folder)
    return folder


def lumina2(folder: Path) -> Path:
    """Lumina 2: Gemma 2 after an instruction, positive and negative prompt one after the other."""
    transformer = made(
        "Lumina2Transformer2DModel",
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 16, 16),
        cap_feat_dim=WIDTH,
    )
    parts = (transformer, FlowMatchEulerDiscreteScheduler(shift=6.0), vae(4), gemma2(), tiny_texts.words())
    diffusers.Lumina2Pipeline(*parts).save_pretrained(folder)
    return folder


def chroma(folder: Path) -> Path:
    """Chroma: Flux without CLIP, with true guidance and masked texts."""
    transformer = made(
        "ChromaTransformer2DModel",
        in_channels=16,
        **FLUX_LIKE,
        approximator_num_channels=64,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_beta_sigmas=False)
    diffusers.ChromaPipeline(scheduler, vae(4), t5(WIDTH), tiny_texts.words(), transformer).save_pretrained(folder)
    return folder


def cogview4(folder: Path, controlled: bool = False) -> Path:
    """CogView4: GLM, texts padded to the longest of a call, and a schedule that depends on the size."""
    transformer = made(
        "CogView4Transformer2DModel",
        patch_size=2,
        in_channels=8 if controlled else 4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
    )
    config = transformers.GlmConfig(
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=32,
        pad_token_id=0,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    parts = (tiny_texts.words(side="left"), seeded(transformers.GlmModel, config), vae(4), transformer, scheduler)
    kind = diffusers.CogView4ControlPipeline if controlled else diffusers.CogView4Pipeline
    kind(*parts).save_pretrained(folder)
    return folder


def qwen_image(folder: Path) -> Path:
    """Qwen-Image: a language model that sees, latents of five dimensions, guidance called true_cfg_scale."""
    scheduler, transformer = qwen_image_parts()
    parts = (scheduler, video_vae(), qwen25(), tiny_texts.words(), transformer)
    diffusers.QwenImagePipeline(*parts).save_pretrained(folder)
    return folder


def qwen_image_parts(**options: Any) -> tuple[FlowMatchEulerDiscreteScheduler, torch.nn.Module]:
    """The scheduler and the transformer of Qwen-Image."""
    transformer = made(
        "QwenImageTransformer2DModel",
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
        **options,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=0.9, use_dynamic_shifting=True, shift_terminal=0.02, time_shift_type="exponential"
    )
    return scheduler, transformer


def ovis(folder: Path) -> Path:
    """Ovis-Image: Flux's way with the texts of Qwen 3 alone, after an instruction of 28 tokens that is cut off."""
    transformer = made(
        "OvisImageTransformer2DModel",
        in_channels=16,
        out_channels=16,
        **FLUX_LIKE,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = (scheduler, vae(4), qwen3(), tiny_texts.words(chat=True), transformer)
    diffusers.OvisImagePipeline(*parts).save_pretrained(folder)
    return folder


def z_image(folder: Path) -> Path:
    """Z-Image: lists of tensors in place of batches, and a chat template around each prompt."""
    transformer = made(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    parts = (FlowMatchEulerDiscreteScheduler(shift=3.0), vae(4), qwen3(), tiny_texts.words(chat=True), transformer)
    diffusers.ZImagePipeline(*parts).save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd3": sd3,
    "sd3-without-t5": lambda folder: sd3(folder, whole=False),
    "flux-dev": flux,
    "flux-schnell": lambda folder: flux(folder, guided=False),
    "pixart-alpha": pixart,
    "pixart-sigma": lambda folder: pixart(folder, sigma=True),
    "sana": sana,
    "hunyuandit": hunyuandit,
    "auraflow": auraflow,
    "lumina": lumina,
    "lumina2": lumina2,
    "chroma": chroma,
    "cogview4": cogview4,
    "cogview4-control": lambda folder: cogview4(folder, controlled=True),
    "qwen-image": qwen_image,
    "ovis-image": ovis,
    "z-image": z_image,
}
