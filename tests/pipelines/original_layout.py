"""Tiny models written into one file, in the layouts of their authors: what diffusers' own conversion reads, the other way round."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
SD3_BLOCK = {
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
SD3_INPUTS = {
    "attn.to_q": ("x_block.attn", 0),
    "attn.to_k": ("x_block.attn", 1),
    "attn.to_v": ("x_block.attn", 2),
    "attn.add_q_proj": ("context_block.attn", 0),
    "attn.add_k_proj": ("context_block.attn", 1),
    "attn.add_v_proj": ("context_block.attn", 2),
    "attn2.to_q": ("x_block.attn2", 0),
    "attn2.to_k": ("x_block.attn2", 1),
    "attn2.to_v": ("x_block.attn2", 2),
}
FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
FLUX_BLOCK = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}
FLUX_INPUTS = {
    "attn.to_q": ("img_attn.qkv", 0),
    "attn.to_k": ("img_attn.qkv", 1),
    "attn.to_v": ("img_attn.qkv", 2),
    "attn.add_q_proj": ("txt_attn.qkv", 0),
    "attn.add_k_proj": ("txt_attn.qkv", 1),
    "attn.add_v_proj": ("txt_attn.qkv", 2),
}
FLUX_SINGLE_INPUTS = {name: ("linear1", order) for order, name in enumerate(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))}
CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _begins(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def unet(tensors: Tensors, layers: int = 1) -> Tensors:
    """A UNet's tensors by the names of CompVis' latent diffusion, with so many resnets a block."""
    return {_unet_name(name, layers): tensor for name, tensor in tensors.items()}


def _unet_name(name: str, layers: int) -> str:
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        kind, number, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_begins(rest, RESNET) if kind == 'resnets' else rest}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        side, block, kind, number, rest = found.groups()
        place = (layers + 1) * int(block) + int(number) + (1 if side == "down" else 0)
        blocks = "input_blocks" if side == "down" else "output_blocks"
        return f"{blocks}.{place}.{0 if kind == 'resnets' else 1}.{_begins(rest, RESNET) if kind == 'resnets' else rest}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(layers + 1) * (int(found[1]) + 1)}.0.op.{found[2]}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.*)", name):
        # Of the tiny models the first block of the way up has attention.
        return f"output_blocks.{(layers + 1) * int(found[1]) + layers}.2.{found[2]}"
    return _begins(name, UNET)


def vae(tensors: Tensors, blocks: int = 4) -> Tensors:
    """A VAE's tensors by the names of CompVis' latent diffusion."""
    return dict(_vae_entry(name, tensor, blocks) for name, tensor in tensors.items())


def _vae_entry(name: str, tensor: torch.Tensor, blocks: int) -> tuple[str, torch.Tensor]:
    if found := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.*)", name):
        rest = _begins(found[2], VAE_ATTENTION)
        # The authors' attention is of convolutions of one pixel.
        whole = tensor[:, :, None, None] if rest.endswith("weight") and not rest.startswith("norm") else tensor
        return f"{found[1]}.mid.attn_1.{rest}", whole.contiguous()
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    up = re.compile(r"up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)")
    name = up.sub(lambda found: f"up.{blocks - 1 - int(found[1])}." + (f"block.{found[3]}" if found[3] else "upsample"), name)
    for old, new in VAE_PARTS.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name, tensor


def clip(tensors: Tensors) -> Tensors:
    """A CLIP text encoder's tensors as the checkpoints of Stable Diffusion hold them, which are those of transformers 4."""
    return {name if name.startswith("text_model.") else f"text_model.{name}": tensor for name, tensor in tensors.items()}


def open_clip(tensors: Tensors) -> Tensors:
    """A CLIP text encoder's tensors by the names of open_clip: queries, keys and values are one."""
    made, inputs = {}, {}
    for name, tensor in tensors.items():
        name = name.removeprefix("text_model.")
        if found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            inputs[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}", found[2]] = tensor
        elif found := re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", name):
            made[f"transformer.resblocks.{found[1]}.{_begins(found[2], CLIP_LAYER)}"] = tensor
        elif name == "text_projection.weight":
            made["text_projection"] = tensor.T.contiguous()
        else:
            name = name.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
            made[name.replace("embeddings.position_embedding.weight", "positional_embedding")] = tensor
    for place in {place for place, _ in inputs}:
        made[place] = torch.cat([inputs[place, one] for one in "qkv"])
    return made


def sd3_transformer(tensors: Tensors, layers: int = 2) -> Tensors:
    """A transformer's tensors as Stable Diffusion 3's authors name them, of so many blocks.

    Queries, keys and values are one; and what scales and shifts the last norm has the two in the other order.
    """
    made, inputs = {}, {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"transformer_blocks\.(\d+)\.(.*)\.(weight|bias)", name):
            number, part, kind = found.groups()
            if part in SD3_INPUTS:
                place, order = SD3_INPUTS[part]
                inputs[f"joint_blocks.{number}.{place}.qkv.{kind}", order] = tensor
                continue
            swapped = part == "norm1_context.linear" and int(number) == layers - 1
            made[f"joint_blocks.{number}.{SD3_BLOCK[part]}.{kind}"] = _swapped(tensor) if swapped else tensor
        else:
            made[_begins(name, SD3)] = _swapped(tensor) if name.startswith("norm_out.") else tensor
    for place in {place for place, _ in inputs}:
        made[place] = torch.cat([inputs[place, order] for order in range(3)])
    return made


def flux_transformer(tensors: Tensors) -> Tensors:
    """A transformer's tensors as Flux's authors name them.

    Queries, keys and values are one, in the single blocks with the first layer behind them; and what scales and shifts the last
    norm has the two in the other order.
    """
    made, inputs = {}, {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.((.*)\.(?:weight|bias))", name):
            single, number, rest, part = found.groups()
            block = f"{'single' if single else 'double'}_blocks.{number}"
            table, joined = (FLUX_SINGLE, FLUX_SINGLE_INPUTS) if single else (FLUX_BLOCK, FLUX_INPUTS)
            if part in joined:
                place, order = joined[part]
                inputs[f"{block}.{place}.{name.rpartition('.')[2]}", order] = tensor
            else:
                made[f"{block}.{_begins(rest, table)}"] = tensor
        else:
            made[_begins(name, FLUX)] = _swapped(tensor) if name.startswith("norm_out.") else tensor
    for place in {place for place, _ in inputs}:
        made[place] = torch.cat([inputs[place, order] for order in range(4) if (place, order) in inputs])
    return made


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def _tensors(folder: Path) -> Tensors:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def _within(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor.clone() for name, tensor in tensors.items()}


def stable_diffusion(folder: Path, file: Path) -> Path:
    """Write a Stable Diffusion 1.x in diffusers' format into one file, as its authors gave theirs out."""
    whole = _within("model.diffusion_model.", unet(_tensors(folder / "unet")))
    whole |= _within("first_stage_model.", vae(_tensors(folder / "vae")))
    whole |= _within("cond_stage_model.transformer.", clip(_tensors(folder / "text_encoder")))
    save_file(whole, file)
    return file


def sdxl(folder: Path, file: Path) -> Path:
    """Write a Stable Diffusion XL in diffusers' format into one file, as its authors gave theirs out."""
    whole = _within("model.diffusion_model.", unet(_tensors(folder / "unet")))
    whole |= _within("first_stage_model.", vae(_tensors(folder / "vae")))
    whole |= _within("conditioner.embedders.0.transformer.", clip(_tensors(folder / "text_encoder")))
    whole |= _within("conditioner.embedders.1.model.", open_clip(_tensors(folder / "text_encoder_2")))
    save_file(whole, file)
    return file


def sd3(folder: Path, file: Path) -> Path:
    """Write a Stable Diffusion 3 in diffusers' format into one file, with its three text encoders."""
    whole = _within("model.diffusion_model.", sd3_transformer(_tensors(folder / "transformer")))
    whole |= _within("first_stage_model.", vae(_tensors(folder / "vae")))
    encoders = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
    for name, part in encoders.items():
        whole |= _within(f"text_encoders.{name}.transformer.", _tensors(folder / part))
    # The authors left out the first CLIP's projection, which changes nothing.
    del whole["text_encoders.clip_l.transformer.text_projection.weight"]
    save_file(whole, file)
    return file


def flux(folder: Path, file: Path) -> Path:
    """Write a Flux in diffusers' format into one file with its two text encoders, as programs give the whole model out."""
    whole = _within("model.diffusion_model.", flux_transformer(_tensors(folder / "transformer")))
    whole |= _within("vae.", vae(_tensors(folder / "vae")))
    whole |= _within("text_encoders.clip_l.transformer.", clip(_tensors(folder / "text_encoder")))
    whole |= _within("text_encoders.t5xxl.transformer.", _tensors(folder / "text_encoder_2"))
    save_file(whole, file)
    return file
