"""Parts of the tiny models of families without a UNet: VAEs, text encoders and language models of random weights."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL

WIDTH = 16  # of text embeddings
# What the smallest transformer after Flux's has, whatever else its family adds.
FLUX_LIKE: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": [4, 4, 8],
}

_GEMMA = {
    "head_dim": 8,
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}


def seeded(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    torch.manual_seed(7)
    return make(*args, **options).eval()


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """A module whose parameters that begin as zeros do something; such layers would hide whatever went wrong before them."""
    torch.manual_seed(8)
    for parameter in module.parameters():
        if not parameter.abs().max():
            torch.nn.init.normal_(parameter, std=0.1)
    return module


def made(name: str, **options: Any) -> torch.nn.Module:
    return lively(seeded(getattr(diffusers, name), **options))


def vae(channels: int, **options: Any) -> AutoencoderKL:
    """8 times smaller latents, with the shift that flow-matching families have."""
    options = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, **options}
    return seeded(
        AutoencoderKL,
        block_out_channels=[4, 4, 8, 8],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=channels,
        norm_num_groups=2,
        scaling_factor=1.5,
        sample_size=64,
        **options,
    )


def t5(width: int) -> transformers.T5EncoderModel:
    config = transformers.T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return seeded(transformers.T5EncoderModel, config)


def gemma() -> transformers.GemmaModel:
    return seeded(transformers.GemmaModel, transformers.GemmaConfig(**_GEMMA))


def gemma2() -> transformers.Gemma2Model:
    return seeded(transformers.Gemma2Model, transformers.Gemma2Config(**_GEMMA))


def qwen3() -> transformers.Qwen3Model:
    config = transformers.Qwen3Config(
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=32,
    )
    return seeded(transformers.Qwen3Model, config)


def qwen25(picture: int = 3) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """Qwen 2.5 VL, with the number of the token that stands for a piece of a picture."""
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": WIDTH,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "vocab_size": 32,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
        },
        vocab_size=32,
        vision_end_token_id=3,
        vision_start_token_id=3,
        vision_token_id=3,
        image_token_id=picture,
    )
    return seeded(transformers.Qwen2_5_VLForConditionalGeneration, config)


def qwen3_vl(layers: int = 2, picture: int = 3) -> transformers.Qwen3VLConfig:
    text = {
        "hidden_size": 2 * WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_scaling": {"mrope_section": [2, 2, 4], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "vocab_size": 32,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 2 * WIDTH}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=picture)


def image_encoder(layers: int = 1) -> transformers.CLIPVisionModelWithProjection:
    """CLIP for pictures of 32 pixels a side, with embeddings of 32 values."""
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    return seeded(transformers.CLIPVisionModelWithProjection, config)


def video_vae(kind: Any = diffusers.AutoencoderKLQwenImage, **more: Any) -> Any:
    """A VAE of videos, which makes four latents of a pixel's block of eight a side."""
    return seeded(
        kind,
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.9, 1.0, 1.2],
        **more,
    )
