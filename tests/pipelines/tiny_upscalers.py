"""Makes tiny networks of random weights, by spandrel's own classes, that enlarge and restore pictures."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.DAT import DAT
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.SwinIR import SwinIR
from torch import nn

# By the name of the architecture, as spandrel says it.
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "ESRGAN": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=4),
    "RealESRGAN Compact": lambda: Compact(num_feat=8, num_conv=3, upscale=2),
    "SwinIR": lambda: SwinIR(
        img_size=16,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=8,
        mlp_ratio=2.0,
        upscale=2,
        upsampler="pixelshuffledirect",
    ),
    "DAT": lambda: DAT(
        img_size=64,
        split_size=[4, 8],
        depth=[2, 2],
        num_heads=[2, 2],
        embed_dim=32,
        expansion_factor=2.0,
        upscale=2,
        upsampler="pixelshuffledirect",
    ),
}


def network_of(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MAKERS[kind]().eval()


def save(network: nn.Module, file: Path) -> Path:
    save_file({name: value.contiguous().clone() for name, value in network.state_dict().items()}, file)
    return file
