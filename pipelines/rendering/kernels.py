"""Applies the switches of `model.kernels` to a loaded model, once, after loading: how its denoiser is computed.

Each switch changes the last bits of the pixels, so all are part of the render config. No switch may choose its kernels by timing
them, which would differ between processes, and none may make a row depend on its companions.
"""

import shutil
from collections.abc import Iterable
from typing import Any

import torch

from promptmill.configs.model import Kernels
from promptmill.pipelines.rendering.libraries import diffusers
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.lean_imports import for_compiling

SHAPES = 256  # compiled versions of one block: of each width, height, and level of the model
# Blocks that are compiled on a GPU beside those that diffusers lists for a denoiser: half of a UNet's time is theirs, and most of a
# VAE's. On a CPU the compiler leaves convolutions as they are, and takes a minute for a model of four of them.
CONVOLVING = ("ResnetBlock2D", "Upsample2D", "Downsample2D")
OF_CONTROLNETS = ("BasicTransformerBlock",)  # for which diffusers lists none
# The classes that compute the same attention step by step, by those that models have. Others also rotate positions, normalise keys,
# join texts or compute no softmax, which a plain processor would leave out in silence.
PLAIN = {fused: name for name in ("AttnProcessor", "AttnAddedKVProcessor") for fused in (name, f"{name}2_0")}
FP8_CAPABILITY = (8, 9)  # of the first GPUs whose tensor cores multiply FP8


def put_on(kernels: Kernels, modules: Iterable[Any], device: torch.device, decoder: Any = None) -> None:
    """Apply the switches to modules.

    Args:
        kernels: The config's switches.
        modules: The denoiser and the ControlNets, with their LoRAs, on their device.
        device: That device.
        decoder: The part of the VAE that makes images of latents, which is compiled with the others; None where there is none.

    Raises:
        ModelError: A switch needs hardware or a library that this machine lacks, or does not go with the model.
    """
    for module in modules:
        if kernels.attention == "plain":
            _plain_attention(module)
        if kernels.channels_last:
            module.to(memory_format=torch.channels_last)
        if kernels.fp8:
            _fp8(module, device)
        if kernels.compile:
            _compile(module, device)
    if kernels.compile and decoder is not None:
        _compile(decoder, device)


def set_compiler() -> None:
    """Set torch's compiler up for this thread: many shapes of one block, and no kernel chosen by timing.

    From torch 2.12 on each thread has settings of its own, and blocks are compiled by the thread that calls them first.
    """
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 64 * SHAPES
    torch._inductor.config.deterministic = True


def _plain_attention(module: Any) -> None:
    there = {place: type(one).__name__ for place, one in getattr(module, "attn_processors", {}).items()}
    if not there or not PLAIN.keys() >= {*there.values()}:
        raise ModelError(f"model.kernels.attention plain does not go with a {type(module).__name__}; set it to sdpa")
    known = diffusers.models.attention_processor
    module.set_attn_processor({place: getattr(known, PLAIN[name])() for place, name in there.items()})


def _fp8(module: Any, device: torch.device) -> None:
    """Convert the linear layers to FP8: weights once, activations at each call, one scale for each row, so that rows stay
    independent.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        have = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        raise ModelError(f"model.kernels.fp8 needs a GPU of compute capability 8.9 or more, and this is {have}; set it to false")
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
        from torchao.quantization.quantize_.common import KernelPreference
    except ImportError:
        raise ModelError("model.kernels.fp8 needs torchao: pip install 'promptmill[fp8]'") from None
    # Torch's own kernels, whatever else is installed; and no settings of inductor's, which would choose kernels by timing them.
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), kernel_preference=KernelPreference.TORCH, set_inductor_config=False
    )
    quantize_(module, config, _fits_fp8)


def _fits_fp8(module: torch.nn.Module, name: str) -> bool:
    # The kernels want sides that are multiples of 16; embeddings of time and size are too small to gain.
    wide = isinstance(module, torch.nn.Linear) and module.in_features % 16 == 0 == module.out_features % 16
    return wide and "transformer_blocks" in name


def _compile(module: Any, device: torch.device) -> None:
    """Compile each repeated block by itself ("regional compilation"), at fixed shapes: minutes less than the whole model, about as
    fast. A module without such blocks stays as it is.
    """
    if not (blocks := _blocks(module, device)):
        return
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise ModelError("model.kernels.compile needs a C++ compiler on a CPU: install g++ or clang++, or set it to false")
    for_compiling()
    set_compiler()
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False)


def _blocks(module: Any, device: torch.device) -> list[Any]:
    """Return the blocks of a module that are compiled, each by itself."""
    names = {*(getattr(module, "_repeated_blocks", None) or OF_CONTROLNETS), *(CONVOLVING if device.type == "cuda" else ())}
    return [one for one in module.modules() if type(one).__name__ in names]
