"""What plain diffusers makes of requests with ControlNets in the families without a UNet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers

from tests.pipelines.plain import picture
from tests.pipelines.plain_calls import asked, loaded, pixels_of
from tests.pipelines.plain_families import FAMILIES


@dataclass(frozen=True)
class Controlled:
    """How a family's pipelines with ControlNets are called, by diffusers' documentation.

    Attributes:
        net: The ControlNet's class.
        pipelines: The pipeline's class, by mode.
        several: Whether they take several at once.
        timed: Whether a ControlNet can begin later and end sooner than the steps do.
        of: The family, where it is not the entry's own name.
        led: The modes whose pipelines take a true_cfg_scale.
        repaints: Whether a ControlNet sees the picture that is to be repainted, and its mask, in place of a control image.
    """

    net: str
    pipelines: Mapping[str, str]
    several: bool = True
    timed: bool = True
    said: Mapping[str, Any] = field(default_factory=dict)
    of: str | None = None
    repaints: bool = False
    led: tuple[str, ...] = ()


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
        led=("controlnet",),
    ),
    "qwen-image": Controlled("QwenImageControlNetModel", {"controlnet": "QwenImageControlNetPipeline"}, several=False),
    "sana": Controlled("SanaControlNetModel", {"controlnet": "SanaControlNetPipeline"}, several=False, timed=False, said=_UNBENT),
    "z-image": Controlled("ZImageControlNetModel", {"controlnet": "ZImageControlNetPipeline"}, several=False, timed=False),
    "hunyuandit": Controlled(
        "HunyuanDiT2DControlNetModel", {"controlnet": "HunyuanDiTControlNetPipeline"}, timed=False, said=_UNBENT
    ),
    "sd3 that repaints": Controlled(
        "SD3ControlNetModel",
        {"controlnet_inpaint": "StableDiffusion3ControlNetInpaintingPipeline"},
        several=False,
        of="sd3",
        repaints=True,
    ),
    "qwen-image that repaints": Controlled(
        "QwenImageControlNetModel",
        {"controlnet_inpaint": "QwenImageControlNetInpaintPipeline"},
        several=False,
        of="qwen-image",
        repaints=True,
    ),
    "z-image of version 2": Controlled(
        "ZImageControlNetModel",
        {"controlnet": "ZImageControlNetPipeline", "controlnet_inpaint": "ZImageControlNetInpaintPipeline"},
        several=False,
        timed=False,
        of="z-image",
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
    how = CONTROLLED[family]
    plain = FAMILIES[how.of or family]
    some = [getattr(diffusers, how.net).from_pretrained(nets[control.type]) for control in request.controls]
    parts = {"controlnet": some[0] if len(some) == 1 else some, **plain.parts}
    pipeline, seen = loaded(how.pipelines[request.mode], base, request, batch, **parts)
    maps = [picture(folder / control.image, count) * 2 - 1 for control in request.controls]
    said = asked(plain, request, count, folder) | {"control_image": maps[0] if len(maps) == 1 else maps}
    if how.repaints:
        said["control_mask"] = said.pop("mask_image")
        said.pop("image")
    elif how.of and request.init_image:
        said["image"] = said["image"] * 2 - 1  # as the pipeline's own processor makes it of a file
    said |= {name: value(request) if callable(value) else value for name, value in how.said.items()}
    steering = {"controlnet_conditioning_scale": "scale"}
    steering |= {"control_guidance_start": "start", "control_guidance_end": "end"} if how.timed else {}
    for name, attribute in steering.items():
        values = [getattr(control, attribute) for control in request.controls]
        said[name] = values[0] if len(values) == 1 else values
    return pixels_of(pipeline(**said).images, request, folder), sum(seen) // count
