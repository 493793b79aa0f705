"""What plain diffusers makes of requests in the families without a UNet: each called as diffusers documents its pipelines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from promptmill.configs.schedulers import SCHEDULERS
from promptmill.pipelines.work.units import candidate_seed
from tests.pipelines.plain import JOB_SEED, picture


@dataclass(frozen=True)
class Plain:
    """How the pipelines of a family are called, by diffusers' documentation and not by promptmill's table.

    Attributes:
        pipelines: The class of each mode.
        guidance: The argument for the guidance scale.
        rows: Rows of a denoiser's call that a candidate takes at a guidance scale of 4.
        unguided: The largest guidance scale without guidance.
        negative: Whether there is an argument for negative prompts.
        always_negative: Whether guidance comes with a negative prompt alone, be it an empty one.
        apart: Whether a call pads its texts to the longest of them, so that a row's image would depend on the others' texts.
        said: Further arguments of every call.
        parts: Parts that are given when a model is loaded.
        schedulers: Short names of schedulers to mix; `model` is the one that the model was saved with.
    """

    pipelines: Mapping[str, str]
    guidance: str = "guidance_scale"
    rows: int = 2
    unguided: float = 1.0
    negative: bool = True
    always_negative: bool = False
    apart: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)
    schedulers: tuple[str, ...] = ("euler",)

    def fills(self, request: Any, batch: int) -> int:
        """Candidates of a request that fill the engine's batch of the denoiser."""
        rows = self.rows if request.guidance_scale > self.unguided else 1
        return self.rows * batch // rows


def in_pieces(call: Callable[..., Any], rows: int, size: int) -> Callable[..., Any]:
    """A module's call with so many rows as several, of `size` rows each."""

    def cut(value: Any, some: slice) -> Any:
        return value[some] if isinstance(value, torch.Tensor) and len(value) == rows else value

    def together(parts: list[Any]) -> Any:
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts)
        if isinstance(parts[0], dict):
            return type(parts[0])(**{name: together([part[name] for part in parts]) for name in parts[0]})
        return tuple(map(together, zip(*parts, strict=True))) if isinstance(parts[0], tuple) else None

    def run(*args: Any, **kwargs: Any) -> Any:
        pieces = [slice(start, start + size) for start in range(0, rows, size)]
        return together([call(*(cut(v, some) for v in args), **{n: cut(v, some) for n, v in kwargs.items()}) for some in pieces])

    # Pipelines look at what a part can be told.
    return wraps(call)(run)


def render_family(plain: Plain, request: Any, count: int, base: Any, folder: Any, batch: int) -> tuple[np.ndarray, int]:
    """The first `count` candidates of a request by diffusers' own pipeline, loaded for them and called once.

    Args:
        plain: How the family's pipelines are called.
        request: What is wanted, without controls and LoRAs.
        count: Candidates in the one call.
        base: The model's folder.
        folder: That of the images.
        batch: How many texts are encoded, and images decoded, at a time.

    Returns:
        Pixels (count, H, W, 3) uint8, and the rows of a candidate that went through the denoiser.
    """
    kind = getattr(diffusers, plain.pipelines[request.mode])
    pipeline = kind.from_pretrained(base, **plain.parts)
    pipeline.set_progress_bar_config(disable=True)
    if not request.scheduler.startswith("model") and plain.schedulers != ("euler",):
        known = SCHEDULERS[request.scheduler]
        pipeline.scheduler = getattr(diffusers, known.class_name).from_config(pipeline.scheduler.config, **known.options)
    pipeline.vae.decode = in_pieces(pipeline.vae.decode, count, batch)
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.forward = in_pieces(part.forward, count, batch)
    seen: list[int] = []
    denoiser = pipeline.transformer
    denoiser.register_forward_pre_hook(
        lambda module, args, named: seen.append(len(args[0] if args else named["hidden_states"])), with_kwargs=True
    )
    said = {
        "prompt": [request.prompt] * count,
        "num_inference_steps": request.steps,
        plain.guidance: request.guidance_scale,
        "generator": [torch.Generator().manual_seed(candidate_seed(JOB_SEED, request, k)) for k in range(count)],
        "output_type": "pt",
        "width": request.width,
        "height": request.height,
        **plain.said,
    }
    if plain.negative and (request.negative_prompt or plain.always_negative):
        said["negative_prompt"] = [request.negative_prompt] * count
    if request.strength:
        said["strength"] = request.strength
    if request.init_image:
        said["image"] = picture(folder / request.init_image, count)
    if request.mask_image:
        said["mask_image"] = picture(folder / request.mask_image, count, 1)
    images = pipeline(**said).images.permute(0, 2, 3, 1)
    made = (images * 255).round().to(torch.uint8).numpy()
    if request.mask_image:
        keep = np.array(Image.open(folder / request.mask_image)) < 128
        made[:, keep] = np.array(Image.open(folder / request.init_image))[keep]
    return made, sum(seen) // count


_UNBENT = {"use_resolution_binning": False}
_NOISE = ("ddim", "euler", "dpmpp_2m", "lcm")


def _modes(family: str) -> dict[str, str]:
    return {"txt2img": f"{family}Pipeline", "img2img": f"{family}Img2ImgPipeline", "inpaint": f"{family}InpaintPipeline"}


def _text(family: str) -> dict[str, str]:
    return {"txt2img": f"{family}Pipeline"}


FAMILIES: dict[str, Plain] = {
    "sd3": Plain(_modes("StableDiffusion3")),
    "sd3-without-t5": Plain(_modes("StableDiffusion3"), parts={"text_encoder_3": None, "tokenizer_3": None}),
    "flux-dev": Plain(_modes("Flux"), rows=1, negative=False),
    "flux-schnell": Plain(_modes("Flux"), rows=1, negative=False),
    "pixart-alpha": Plain(_text("PixArtAlpha"), said=_UNBENT, schedulers=_NOISE),
    "pixart-sigma": Plain(_text("PixArtSigma"), said=_UNBENT, schedulers=_NOISE),
    "sana": Plain(_text("Sana"), said=_UNBENT, schedulers=("dpmpp_2m",)),
    "hunyuandit": Plain(_text("HunyuanDiT"), said=_UNBENT, schedulers=_NOISE),
    "auraflow": Plain(_text("AuraFlow")),
    "lumina": Plain(_text("Lumina"), apart=True),
    "lumina2": Plain(_text("Lumina2"), rows=1, apart=True),
    "chroma": Plain(_text("Chroma") | {"img2img": "ChromaImg2ImgPipeline"}, rows=1),
    "cogview4": Plain(_text("CogView4"), rows=1, apart=True),
    "qwen-image": Plain(_modes("QwenImage"), rows=1, guidance="true_cfg_scale", always_negative=True, apart=True),
    "z-image": Plain(_modes("ZImage"), unguided=0.0, apart=True),
}
