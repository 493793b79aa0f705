"""Tiny ControlNets of families without a UNet, each made of the tiny transformer that it fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests.pipelines.tiny_parts import lively


def _of(name: str, base: Path) -> Any:
    return getattr(diffusers, name).from_pretrained(base, subfolder="transformer")


def sd3(base: Path, masked: int = 0) -> torch.nn.Module:
    transformer = _of("SD3Transformer2DModel", base)
    return diffusers.SD3ControlNetModel.from_transformer(transformer, num_layers=1, num_extra_conditioning_channels=masked)


def flux(base: Path) -> torch.nn.Module:
    transformer = _of("FluxTransformer2DModel", base)
    sizes = {name: transformer.config[name] for name in ("attention_head_dim", "num_attention_heads")}
    return diffusers.FluxControlNetModel.from_transformer(transformer, num_layers=1, num_single_layers=1, **sizes)


def qwen_image(base: Path, masked: int = 0) -> torch.nn.Module:
    transformer = _of("QwenImageTransformer2DModel", base)
    sizes = {name: transformer.config[name] for name in ("attention_head_dim", "num_attention_heads")}
    # A mask of one channel, of which a token stands for four values.
    return diffusers.QwenImageControlNetModel.from_transformer(
        transformer, num_layers=1, **sizes, extra_condition_channels=4 * masked
    )


def sana(base: Path) -> torch.nn.Module:
    config = dict(_of("SanaTransformer2DModel", base).config)
    return diffusers.SanaControlNetModel.from_config({**config, "_class_name": "SanaControlNetModel", "num_layers": 1})


def hunyuandit(base: Path) -> torch.nn.Module:
    config = dict(_of("HunyuanDiT2DModel", base).config)
    own = {"_class_name": "HunyuanDiT2DControlNetModel", "transformer_num_layers": config["num_layers"]}
    return diffusers.HunyuanDiT2DControlNetModel.from_config({**config, **own})


def z_image(base: Path, masked: bool = False, **options: Any) -> torch.nn.Module:
    config = _of("ZImageTransformer2DModel", base).config
    sizes = {name: config[name] for name in ("dim", "n_refiner_layers", "n_heads", "n_kv_heads")}
    channels = config["in_channels"] * (2 if masked else 1) + masked
    return diffusers.ZImageControlNetModel(control_layers_places=[0], control_in_dim=channels, **sizes, **options)


MAKERS: dict[str, Callable[[Path], torch.nn.Module]] = {
    "sd3": sd3,
    "flux-dev": flux,
    "qwen-image": qwen_image,
    "sana": sana,
    "hunyuandit": hunyuandit,
    "z-image": z_image,
    # Those that see a mask and the picture that is to be repainted.
    "sd3 that repaints": lambda base: sd3(base, masked=1),
    "qwen-image that repaints": lambda base: qwen_image(base, masked=1),
    "z-image of version 2": lambda base: z_image(base, masked=True),
}


def controlnet(family: str, base: Path, folder: Path, seed: int = 3) -> Path:
    """A ControlNet for a family's tiny model, its last layers not zero, so that it does something."""
    torch.manual_seed(seed)
    net = lively(MAKERS[family](base))
    # Beside the layers that begin as zeros, a seed of its own, so that two of them differ.
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    net.eval().save_pretrained(folder)
    return folder
