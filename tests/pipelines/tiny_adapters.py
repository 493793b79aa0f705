"""Tiny models of random weights that steer Stable Diffusion beside its own ControlNets."""

from pathlib import Path

import torch
from diffusers import ControlNetUnionModel, FluxControlNetModel, FluxTransformer2DModel, UNet2DConditionModel

from tests.pipelines.tiny_families import lively


def union(base: Path, folder: Path, seed: int = 3) -> Path:
    """A ControlNet of six modes that fits an SDXL, its last layers not zero, so that it does something."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    shared = ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups")
    shared += ("cross_attention_dim", "transformer_layers_per_block", "attention_head_dim", "use_linear_projection")
    shared += ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    width = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    sizes = {name: unet.config[name] for name in shared}
    net = ControlNetUnionModel(**sizes, **width, conditioning_embedding_out_channels=(4, 8, 8, 16))
    lively(net).eval().save_pretrained(folder)
    return folder


def flux_union(base: Path, folder: Path) -> Path:
    """A ControlNet of four modes that fits a Flux."""
    torch.manual_seed(3)
    config = dict(FluxTransformer2DModel.from_pretrained(base, subfolder="transformer").config)
    own = {"_class_name": "FluxControlNetModel", "num_layers": 1, "num_single_layers": 1, "num_mode": 4}
    lively(FluxControlNetModel.from_config({**config, **own})).eval().save_pretrained(folder)
    return folder
