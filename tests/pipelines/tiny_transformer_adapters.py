"""Tiny IP-Adapters of random weights for transformers, in the layouts of their authors, and what reads pictures for them."""

import re
from pathlib import Path

import torch
from diffusers import AutoModel, SD3Transformer2DModel
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from safetensors.torch import save_file
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from tests.pipelines.tiny_parts import lively

READ = 12  # values of a picture, as the tiny CLIP of `tiny_adapters` gives them
# The resampler's layers as diffusers names them, and as InstantX does.
SD3_LAYERS = {
    "ln0.": "0.norm1.",
    "ln1.": "0.norm2.",
    "attn.to_q.": "0.to_q.",
    "attn.to_kv.": "0.to_kv.",
    "attn.to_out.0.": "0.to_out.",
    "adaln_norm.": "1.0.",
    "ff.net.0.proj.": "1.1.",
    "ff.net.2.": "1.3.",
    "adaln_proj.": "2.1.",
}


def flux(base: Path, file: Path, seed: int = 3, authors: bool = True, read: int = READ) -> Path:
    """An IP-Adapter that fits a Flux, or what is made of one, and the tiny CLIP, in the layout of XLabs or in diffusers' own."""
    torch.manual_seed(seed)
    transformer = AutoModel.from_pretrained(str(base), subfolder="transformer")
    width = transformer.config.joint_attention_dim
    begins = ("ip_adapter_proj_model.", "double_blocks.") if authors else ("image_proj.", "ip_adapter.")
    tensors = {"proj.weight": torch.randn(4 * width, read), "proj.bias": torch.randn(4 * width)}
    tensors |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    tensors = {f"{begins[0]}{name}": one for name, one in tensors.items()}
    for block in range(transformer.config.num_layers):
        for one in "kv":
            name = f"processor.ip_adapter_double_stream_{one}_proj" if authors else f"to_{one}_ip"
            tensors[f"{begins[1]}{block}.{name}.weight"] = torch.randn(transformer.inner_dim, width) / 4
            tensors[f"{begins[1]}{block}.{name}.bias"] = torch.randn(transformer.inner_dim)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def siglip(folder: Path, side: int = 16) -> Path:
    """A SigLIP that reads pictures of so many pixels a side, 16 values for each token, beside its image processor."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(9)
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=side, patch_size=8)).eval().save_pretrained(folder)
    SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def sd3(base: Path, file: Path, seed: int = 3) -> Path:
    """An IP-Adapter that fits a Stable Diffusion 3 and the tiny SigLIP, in the layout of InstantX."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel.from_pretrained(base, subfolder="transformer")
    head, inner = transformer.config.attention_head_dim, transformer.inner_dim
    resampler = IPAdapterTimeImageProjection(
        embed_dim=16, output_dim=inner, hidden_dim=32, depth=4, heads=1, num_queries=4, timestep_in_dim=16
    )
    tensors = {}
    for name, one in lively(resampler).state_dict().items():
        found = re.fullmatch(r"(layers\.\d+\.)(.*)", name)
        begins = next((old for old in SD3_LAYERS if found and found[2].startswith(old)), "")
        name = f"{found[1]}{SD3_LAYERS[begins]}{found[2].removeprefix(begins)}" if found else name
        tensors[f"image_proj.{name}"] = one
    for place in range(len(transformer.attn_processors)):
        torch.manual_seed(seed + place)
        processor = lively(SD3IPAdapterJointAttnProcessor2_0(inner, inner, head, timesteps_emb_dim=32))
        tensors |= {f"ip_adapter.{place}.{name}": one for name, one in processor.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file
