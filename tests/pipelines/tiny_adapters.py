"""Tiny models of random weights that steer Stable Diffusion beside its own ControlNets."""

from pathlib import Path

import torch
from diffusers import (
    ControlNetUnionModel,
    FluxControlNetModel,
    FluxPriorReduxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.pipelines.tiny_parts import lively

NORM = (("weight", "ones"), ("bias", "zeros"))  # of a norm that does nothing more


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


def image_encoder(folder: Path) -> Path:
    """A CLIP that reads pictures of 32 pixels a side: 12 values a picture, 16 for each of its 17 tokens."""
    torch.manual_seed(8)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, projection_dim=12, image_size=32, patch_size=8)
    CLIPVisionModelWithProjection(config).eval().save_pretrained(folder)
    return folder


def ip_adapter(base: Path, file: Path, seed: int = 3, plus: bool = False, full: bool = False, read: int = 16) -> Path:
    """An IP-Adapter that fits the UNet of a tiny model and the tiny image encoder, in the layout of its authors.

    Plus adapters and those of full faces read the tokens of a picture, the others its one embedding.
    """
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    width = unet.config.cross_attention_dim
    tensors = _resampler(read, width) if plus else _full(16, width) if full else _projection(12, width)
    cross = (name for name in unet.attn_processors if "attn2" in name)
    for place, name in enumerate(cross):
        rows = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        tensors |= {f"ip_adapter.{2 * place + 1}.to_{one}_ip.weight": torch.randn(rows, width) for one in "kv"}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def _projection(read: int, width: int) -> dict[str, torch.Tensor]:
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    linear = {"proj.weight": torch.randn(4 * width, read), "proj.bias": torch.randn(4 * width)}
    return {f"image_proj.{name}": one for name, one in (linear | norm).items()}


def face_adapter(base: Path, file: Path, seed: int = 3, lora: bool = False, width: int = 8) -> Path:
    """An IP-Adapter for embeddings of faces of so many values (FaceID), with or without LoRAs of the whole UNet."""
    torch.manual_seed(seed)
    ip_adapter(base, file, seed)
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    cross = unet.config.cross_attention_dim
    tensors = {name: one for name, one in load_file(file).items() if name.startswith("ip_adapter.")}
    made = {"proj.0.weight": torch.randn(2 * width, width), "proj.0.bias": torch.randn(2 * width)}
    made |= {"proj.2.weight": torch.randn(4 * cross, 2 * width), "proj.2.bias": torch.randn(4 * cross)}
    made |= {"norm.weight": torch.ones(cross), "norm.bias": torch.zeros(cross)}
    tensors |= {f"image_proj.{name}": one for name, one in made.items()}
    for place, name in enumerate(unet.attn_processors if lora else ()):
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for part, layer in (("q", attention.to_q), ("k", attention.to_k), ("v", attention.to_v), ("out", attention.to_out[0])):
            tensors[f"ip_adapter.{place}.to_{part}_lora.down.weight"] = torch.randn(2, layer.in_features) / 4
            tensors[f"ip_adapter.{place}.to_{part}_lora.up.weight"] = torch.randn(layer.out_features, 2) / 4
    save_file(tensors, file)
    return file


def face_plus_adapter(base: Path, file: Path, seed: int = 3, lora: bool = False, width: int = 8) -> Path:
    """An IP-Adapter for embeddings of faces and the tokens of pictures of them (FaceID Plus), as wide as texts are for v2's sum."""
    face_adapter(base, file, seed, lora, width)
    tensors = load_file(file)
    cross = tensors["image_proj.norm.weight"].shape[0]
    made = _resampler(16, cross, inner=cross)
    tensors |= {
        name.replace("image_proj.", "image_proj.perceiver_resampler."): one for name, one in made.items() if "latents" not in name
    }
    save_file(tensors, file)
    return file


def _full(read: int, width: int) -> dict[str, torch.Tensor]:
    """The projection of an adapter of full faces: two layers for each token of the picture."""
    linear = {"0.weight": torch.randn(read, read) / 4, "0.bias": torch.randn(read)}
    linear |= {"2.weight": torch.randn(width, read) / 4, "2.bias": torch.randn(width)}
    norm = {"3.weight": torch.ones(width), "3.bias": torch.zeros(width)}
    return {f"image_proj.proj.{name}": one for name, one in (linear | norm).items()}


def _resampler(read: int, width: int, inner: int = 24, head: int = 64) -> dict[str, torch.Tensor]:
    """The projection of a plus adapter: four layers of attention from 16 learned tokens to those of the picture."""
    made = {"latents": torch.randn(1, 16, inner), "proj_in.weight": torch.randn(inner, read), "proj_in.bias": torch.randn(inner)}
    made |= {"proj_out.weight": torch.randn(width, inner), "proj_out.bias": torch.randn(width)}
    made |= {"norm_out.weight": torch.ones(width), "norm_out.bias": torch.zeros(width)}
    for layer in range(4):
        own = {f"0.norm{one}.{part}": getattr(torch, of)(inner) for one in (1, 2) for part, of in NORM}
        own |= {"0.to_q.weight": torch.randn(head, inner), "0.to_kv.weight": torch.randn(2 * head, inner)}
        own |= {"0.to_out.weight": torch.randn(inner, head) / 8, **{f"1.0.{part}": getattr(torch, of)(inner) for part, of in NORM}}
        own |= {"1.1.weight": torch.randn(4 * inner, inner) / 5, "1.3.weight": torch.randn(inner, 4 * inner) / 10}
        made |= {f"layers.{layer}.{name}": one for name, one in own.items()}
    return {f"image_proj.{name}": one for name, one in made.items()}


def adaptable(base: Path, folder: Path) -> Path:
    """A tiny Stable Diffusion whose UNet's last level does not scale down, as that of 1.5, so that T2I-Adapters fit."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, requires_safety_checker=False)
    torch.manual_seed(2)
    types = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, **types}).eval()
    pipeline.save_pretrained(folder)
    return folder


def t2i_adapter(folder: Path, seed: int = 3, kind: str = "full_adapter", channels: int = 3) -> Path:
    """A T2I-Adapter that fits the UNets with levels of 8 and 16 channels."""
    torch.manual_seed(seed)
    side = 16 if kind == "full_adapter_xl" else 8
    T2IAdapter(channels, [8, 16], num_res_blocks=1, downscale_factor=side, adapter_type=kind).eval().save_pretrained(folder)
    return folder


def redux(folder: Path, width: int = 16) -> Path:
    """A Flux Redux: SigLIP reads pictures of 16 pixels a side, and each of its four tokens becomes one as wide as a text's."""
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    torch.manual_seed(9)
    encoder, embedder = SiglipVisionModel(config).eval(), ReduxImageEncoder(redux_dim=16, txt_in_features=width).eval()
    size = {"height": 16, "width": 16}
    FluxPriorReduxPipeline(encoder, SiglipImageProcessor(size=size), embedder).save_pretrained(folder)
    return folder
