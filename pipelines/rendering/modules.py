"""Wraps calls of modules where the plain call would depend on chance, on a call's other rows, or on another pipeline's leavings."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from promptmill.pipelines.rendering.rows import together


def scaled_after(call: Callable[..., Any], net: Any) -> Callable[..., Any]:
    """Return a ControlNet call whose scale, one for each call, is applied to the answer: the same product, after the batch.

    A net that sees several control images at once has a scale for each inside of it, and so have some nets with one: calls share a
    batch where these are equal.

    Args:
        call: The call.
        net: The ControlNet, as its config has it.
    """

    # Z-Image's ControlNets of version 2 refine the noise by what they have scaled.
    inside = getattr(net.config, "add_control_noise_refiner", None) is not None

    def scaled(answer: Any, scale: float) -> Any:
        if isinstance(answer, torch.Tensor):
            return answer * scale
        if isinstance(answer, dict):
            return {name: scaled(one, scale) for name, one in answer.items()}
        return answer if answer is None else type(answer)(scaled(one, scale) for one in answer)

    def guessed(answer: Any, scale: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        down, middle = answer
        # As ControlNetModel's forward has it: from 0.1 for the finest level to 1.
        scales = torch.logspace(-1, 0, len(down) + 1, device=middle.device) * scale
        return [one * by for one, by in zip(down, scales, strict=False)], middle * scales[-1]

    def hold(*args: Any, conditioning_scale: Any = 1.0, guess_mode: bool = False, **kwargs: Any) -> Any:
        several = inside or (isinstance(conditioning_scale, list) and len(conditioning_scale) > 1)
        scale = conditioning_scale[0] if isinstance(conditioning_scale, list) and not several else conditioning_scale
        guess = {"guess_mode": False} if guess_mode else {}
        answer = call(*args, conditioning_scale=scale if several else 1.0, **kwargs, **guess)
        if guess_mode and not getattr(net.config, "global_pool_conditions", False):
            return guessed(answer, 1.0 if several else scale)
        return answer if several else scaled(answer, scale)

    return hold


def moded_by_row(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call of Flux's ControlNets that has its mode for each row: two of diffusers' pipelines give one for the call."""

    def hold(*args: Any, controlnet_mode: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if controlnet_mode is None:
            return call(*args, **kwargs)
        return call(*args, controlnet_mode=controlnet_mode.expand(len(kwargs["hidden_states"]), 1), **kwargs)

    return hold


def kept_in_fp32(vae: Any) -> None:
    """Make a VAE in fp16 one that computes in fp32 from now on, whatever it is converted to, and still says fp16.

    A VAE with `force_upcast` overflows in fp16. Pipelines lift the VAE before each use where the VAE says fp16, and convert it back
    afterwards. Of pipelines that share a VAE, one that found the VAE lifted by another would leave its own latents in fp16.
    """
    kind = type(vae)

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        return self if device is None else kind.to(self, device, non_blocking=non_blocking)

    def lifted(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            return call(self, *map(_floats, args), **{name: _floats(value) for name, value in kwargs.items()})

        return run

    said: dict[str, Any] = {"to": to, "encode": lifted(kind.encode), "decode": lifted(kind.decode)}
    said |= {"dtype": property(lambda self: torch.float16), "__module__": kind.__module__}
    kind.to(vae, torch.float32)
    vae.__class__ = type(kind.__name__, (kind,), said)


def _floats(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def decoded_in_its_dtype(vae: Any) -> Callable[..., Any]:
    """Return a decoder that first converts the VAE to the dtype of the latents.

    SDXL's pipelines lift their VAE to fp32 around each use; between the two, another pipeline may have converted it back.
    """
    decode = vae.decode

    def run(**given: Any) -> Any:
        latents = next(iter(given.values()))
        if next(vae.parameters()).dtype != latents.dtype:
            vae.to(latents.dtype)
        return decode(**given)

    return run


def without_generator(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decoder that drops generators: a KL autoencoder decodes without chance, but some pipelines pass one on."""

    def hold(*args: Any, generator: Any = None, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return hold


def encoded_apart(encode: Callable[..., Any]) -> Callable[..., Any]:
    """Return a VAE's `encode` that takes one picture at a time, as pipelines with a generator for each sample mostly call it.

    A distribution that is sampled without a generator gives its mean: the control pipelines of Stable Diffusion 3, HunyuanDiT and
    CogView4 sample so, from torch's global generator, and so make other images each time.
    """

    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # Of Pillow's pictures diffusers makes channels-last tensors, and kernels for that format make other bits.
        made = _together([encode(one.contiguous(), *args, **kwargs) for one in x.split(1)])
        if (spread := getattr(made, "latent_dist", None)) is not None:
            sample = spread.sample
            spread.sample = lambda generator=None: spread.mode() if generator is None else sample(generator)
        return made

    return run


def turned(call: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """Return a denoiser's call, by keyword, that takes arguments of these names with their first two dimensions exchanged."""

    def run(**given: Any) -> Any:
        return call(**given | {name: given[name].transpose(0, 1) for name in names if given.get(name) is not None})

    return run


def row_by_row(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer's call that computes each row by itself.

    A layer of experts sorts the tokens of all rows by the experts they go to, so that a row's companions would decide how many
    tokens an expert multiplies at once, and with it the row's last bits.
    """

    def run(rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([forward(row) for row in rows.split(1)])

    return run


def rows_first(module: Any) -> Callable[..., Any]:
    """Return the call of a text encoder that answers (length, rows, width), as Kolors' does, with the rows first.

    The encoder masks a batch only where one of its rows is padded, by another kernel; here it always does.
    """
    forward = module.forward

    def run(**given: Any) -> Any:
        mask = module.get_masks(given["input_ids"], None, padding_mask=given["attention_mask"])
        answer = forward(**given, full_attention_mask=mask, use_cache=False)
        return type(answer)(hidden_states=tuple(layer.transpose(0, 1) for layer in answer.hidden_states))

    return run


def _together(parts: list[Any]) -> Any:
    first = parts[0]
    if len(parts) == 1:
        return first
    spread = getattr(first, "latent_dist", None)
    if spread is None:
        return together(parts)
    return type(first)(latent_dist=type(spread)(torch.cat([part.latent_dist.parameters for part in parts])))
