"""Tiny models of Bria's families, which a language model reads texts for, as `tiny_readers` has the others."""

from collections.abc import Callable
from pathlib import Path

import diffusers
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.pipelines import tiny_texts
from tests.pipelines.tiny_editors import flux2_vae
from tests.pipelines.tiny_parts import FLUX_LIKE, WIDTH, made, qwen3_vl, seeded, t5, vae, video_vae


def bria(folder: Path) -> Path:
    """Bria 3.2: Flux's way with T5 alone, zeros in place of an empty negative prompt, and true guidance."""
    transformer = made(
        "BriaTransformer2DModel",
        in_channels=16,
        **FLUX_LIKE,
        pooled_projection_dim=None,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    diffusers.BriaPipeline(transformer, scheduler, vae(4), t5(WIDTH), tiny_texts.words()).save_pretrained(folder)
    return folder


def fibo(folder: Path, edits: bool = False) -> Path:
    """Bria FIBO: the outputs of SmolLM 3's layers, one for each block, and a VAE of videos whose pixels are folded first."""
    transformer = made(
        "BriaFiboTransformer2DModel",
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        text_encoder_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    small = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    # An empty text is a token of its own, 128,000.
    config = transformers.SmolLM3Config(**small, num_key_value_heads=2, vocab_size=128008, pad_token_id=0)
    latents = video_vae(diffusers.AutoencoderKLWan, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16)
    encoder = seeded(transformers.SmolLM3ForCausalLM, config)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    kind = diffusers.BriaFiboEditPipeline if edits else diffusers.BriaFiboPipeline
    kind(transformer, scheduler, latents, encoder, tiny_texts.words()).save_pretrained(folder)
    return folder


def fibo2(folder: Path) -> Path:
    """Bria FIBO 2: the outputs of several layers of Qwen 3 VL in bundles, and a Perceiver that makes a gist of the first one."""
    words, picture = tiny_texts.seeing()
    transformer = made(
        "BriaFibo2Transformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=3 * 2 * WIDTH,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=8,
        max_num_gist_tokens=16,
        gist_step=4,
        gist_min_text_len=8,
        gist_max_text_len=64,
        axes_dims=(8, 4, 4),
        axes_lens=(64, 32, 32),
    )
    reader = seeded(transformers.Qwen3VLForConditionalGeneration, qwen3_vl(picture=picture))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts = (transformer, scheduler, flux2_vae(), reader, tiny_texts.processor3(words))
    diffusers.BriaFibo2Pipeline(*parts).save_pretrained(folder)
    return folder


BRIA: dict[str, Callable[[Path], Path]] = {
    "bria": bria,
    "bria-fibo": fibo,
    "bria-fibo-2": fibo2,
    "bria-fibo-edit": lambda folder: fibo(folder, edits=True),
}
