"""What plain diffusers makes of requests that are steered by other models than the ControlNets of their family."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.pipelines.plain import MODES, picture, request
from tests.pipelines.plain_calls import Plain, asked, loaded, pixels_of

XL = "StableDiffusionXL"
SD, SDXL = (Plain({}, parts={"safety_checker": None, "requires_safety_checker": False}), Plain({}))


def render_steered(
    plain: Plain, name: str, request: Any, count: int, base: Path, parts: Mapping[str, Any], said: Mapping[str, Any], folder: Path
) -> Any:
    """The first `count` candidates of a request by the pipeline class of a name, (count, H, W, 3) uint8.

    Args:
        plain: What the family's pipelines are called with.
        name: The class.
        request: Who wants them.
        count: Candidates in the one call.
        base: The model's folder.
        parts: The models that steer, by the pipeline's argument.
        said: Further arguments of the call.
        folder: That of the images.
    """
    pipeline, _ = loaded(name, base, request, said.get("batch", count), **parts, **plain.parts)
    further = {key: value for key, value in said.items() if key != "batch"}
    images = pipeline(**asked(plain, request, count, folder), **further).images
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return pixels_of(images, request, folder)


def maps_of(request: Any, count: int, folder: Path) -> list[torch.Tensor]:
    """The control images of a request, each (count, 3, H, W) in 0 … 1."""
    return [picture(folder / control.image, count) for control in request.controls]


def one_or_all(values: list[Any]) -> Any:
    """A single value by itself, as pipelines want it."""
    return values[0] if len(values) == 1 else values


def steering(request: Any, scale: str = "controlnet_conditioning_scale", timed: bool = True) -> dict[str, Any]:
    """The arguments for the scales of a request's controls, and for their shares of the steps."""
    said = {scale: one_or_all([control.scale for control in request.controls])}
    for name in ("start", "end") if timed else ():
        said[f"control_guidance_{name}"] = one_or_all([getattr(control, name) for control in request.controls])
    return said


def mixed(ways: Sequence[Any], modes: Sequence[str] = ("txt2img", "img2img", "inpaint")) -> list[Any]:
    """Requests that differ in mode, steps and guidance, each with one of these ways to give references."""
    return [
        request(
            f"r{number}",
            references=references,
            steps=2 + number % 2,
            guidance_scale=[4.0, 7.0, 1.0][number % 3],
            scheduler="euler",
            **{"mode": (mode := modes[number % len(modes)]), **MODES[mode]},
        )
        for number, references in enumerate(ways)
    ]
