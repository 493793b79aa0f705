"""What plain diffusers makes of requests with ControlNets in the families without a UNet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from promptmill.pipelines.work.units import candidate_seed
from tests.pipelines.plain import JOB_SEED, picture
from tests.pipelines.plain_families import FAMILIES, _scheduler, in_pieces


@dataclass(frozen=True)
class Controlled:
    """How a family's pipelines with ControlNets are called, by diffusers' documentation.

    Attributes:
        net: The ControlNet's class.
        pipelines: The pipeline's class, by mode.
        several: Whether they take several at once.
        timed: Whether a ControlNet can begin later and end sooner than the steps do.
    """

    net: str
    pipelines: Mapping[str, str]
    several: bool = True
    timed: bool = True
    said: Mapping[str, Any] = field(default_factory=dict)


_UNBENT = {"use_resolution_binning": False}

CONTROLLED = {
    "sd3": Controlled("SD3ControlNetModel", {"controlnet": "StableDiffusion3ControlNetPipeline"}),
    "flux-dev": Controlled(
        "FluxControlNetModel",
        {
            "controlnet": "FluxControlNetPipeline",
            "controlnet_img2img": "FluxControlNetImg2ImgPipeline",
            "controlnet_inpaint": "FluxControlNetInpaintPipeline",
        },
        said={"control_mode": lambda request: [None, None] if len(request.controls) == 2 else None},
    ),
    "qwen-image": Controlled("QwenImageControlNetModel", {"controlnet": "QwenImageControlNetPipeline"}, several=False),
    "sana": Controlled("SanaControlNetModel", {"controlnet": "SanaControlNetPipeline"}, several=False, timed=False, said=_UNBENT),
    "hunyuandit": Controlled(
        "HunyuanDiT2DControlNetModel", {"controlnet": "HunyuanDiTControlNetPipeline"}, timed=False, said=_UNBENT
    ),
}


def render_controlled(family: str, request: Any, count: int, base: Path, nets: Mapping[str, Path], folder: Path, batch: int) -> Any:
    """The first `count` candidates of a request, (count, H, W, 3) uint8, and the rows of a candidate in the denoiser.

    Args:
        family: One of `CONTROLLED`.
        request: Who wants them, with controls.
        count: Candidates in the one call.
        base: The model's folder.
        nets: The ControlNets' folders, by type.
        folder: That of the images.
        batch: How many texts are encoded, and images decoded, at a time; pictures are encoded one by one.
    """
    plain, how = FAMILIES[family], CONTROLLED[family]
    loaded = [getattr(diffusers, how.net).from_pretrained(nets[control.type]) for control in request.controls]
    kind = getattr(diffusers, how.pipelines[request.mode])
    pipeline = kind.from_pretrained(base, controlnet=loaded[0] if len(loaded) == 1 else loaded, **plain.parts)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = _scheduler(request.scheduler, pipeline.scheduler.config)
    pipeline.vae.decode = in_pieces(pipeline.vae.decode, batch)
    encode = in_pieces(pipeline.vae.encode, 1)

    def meant(*args: Any, **kwargs: Any) -> Any:
        # Some of these pipelines sample what they have encoded from torch's global generator: they never make an image again.
        made = encode(*args, **kwargs)
        if spread := getattr(made, "latent_dist", None):
            sample = spread.sample
            spread.sample = lambda generator=None: spread.mode() if generator is None else sample(generator)
        return made

    pipeline.vae.encode = meant
    for name, part in pipeline.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.forward = in_pieces(part.forward, batch)
    seen: list[int] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, named: seen.append(len([*args, *named.values()][0])), with_kwargs=True
    )
    maps = [picture(folder / control.image, count) * 2 - 1 for control in request.controls]
    said = {
        "prompt": [request.prompt] * count,
        "num_inference_steps": request.steps,
        plain.guidance: request.guidance_scale,
        "generator": [torch.Generator().manual_seed(candidate_seed(JOB_SEED, request, k)) for k in range(count)],
        "output_type": "pt",
        "width": request.width,
        "height": request.height,
        "control_image": maps[0] if len(maps) == 1 else maps,
        **{name: value(request) if callable(value) else value for name, value in how.said.items()},
    }
    steering = {"controlnet_conditioning_scale": "scale"}
    steering |= {"control_guidance_start": "start", "control_guidance_end": "end"} if how.timed else {}
    for name, attribute in steering.items():
        values = [getattr(control, attribute) for control in request.controls]
        said[name] = values[0] if len(values) == 1 else values
    if plain.negative and (request.negative_prompt or plain.always_negative):
        said["negative_prompt"] = [request.negative_prompt] * count
    if request.init_image:
        said |= {"image": picture(folder / request.init_image, count), "strength": request.strength}
    if request.mask_image:
        said["mask_image"] = picture(folder / request.mask_image, count, 1)
    images = pipeline(**said).images.permute(0, 2, 3, 1)
    made = (images * 255).round().to(torch.uint8).numpy()
    if request.mask_image:
        keep = np.array(Image.open(folder / request.mask_image)) < 128
        made[:, keep] = np.array(Image.open(folder / request.init_image))[keep]
    return made, sum(seen) // count
