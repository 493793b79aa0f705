"""Lists the classes of control models that each family's pipelines take, and how the pipelines of a class take them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.pipeline_classes import TABLES, family_name, with_controlnet


@dataclass(frozen=True)
class ControlClass:
    """Describes the control models of one class beside a family.

    Attributes:
        name: The class, as the model's own config names it.
        pipelines: Diffusers' pipelines that take such models, by the mode without its control.
        part: The argument of the pipelines that takes the models.
        scale: The argument that takes the scales of the controls.
        several: Whether the pipelines take several models at once.
        timed: Whether a model can begin later and end sooner than the steps do.
        numbers: The key of the model's config that counts its modes; None where such models have no modes.
        together: Whether a model that has several modes is called once with all of them.
        guess: Whether the pipelines have a guess mode.
        repaints: Whether the models see the row's own picture and its mask in place of a control image.
        from_noise: The modes, without their control, in which images begin with noise alone, though there is a picture.
    """

    name: str
    pipelines: Mapping[str, str]
    part: str = "controlnet"
    scale: str = "controlnet_conditioning_scale"
    several: bool = True
    timed: bool = True
    numbers: str | None = None
    together: bool = False
    guess: bool = False
    repaints: bool = False
    from_noise: tuple[str, ...] = ()


_XL = "StableDiffusionXLControlNetUnion"
_UNION = ControlClass(
    "ControlNetUnionModel",
    {"txt2img": f"{_XL}Pipeline", "img2img": f"{_XL}Img2ImgPipeline", "inpaint": f"{_XL}InpaintPipeline"},
    numbers="num_control_type",
    together=True,  # diffusers 0.42 has a guess mode, too, which raises
)


def _t2i(pipeline: str) -> ControlClass:
    """Return the class of T2I-Adapters (arXiv:2302.08453), which read a control image once and add to the UNet's own features."""
    return ControlClass("T2IAdapter", {"txt2img": pipeline}, part="adapter", scale="adapter_conditioning_scale", timed=False)


REPAINTS = " that repaints"  # behind the name of a class: its models see a mask beside their picture
MASKED = ("extra_conditioning_channels", "extra_condition_channels")  # of such a model's config


def _repainting(name: str, pipeline: str) -> ControlClass:
    """Return the class of ControlNets that repaint what a mask says, from noise."""
    return ControlClass(f"{name}{REPAINTS}", {"inpaint": pipeline}, several=False, repaints=True, from_noise=("inpaint",))


# By diffusers' name for a family: classes beside the one that `FAMILIES` names.
OTHERS: dict[str, tuple[ControlClass, ...]] = {
    "stable-diffusion": (_t2i("StableDiffusionAdapterPipeline"),),
    "stable-diffusion-xl": (_UNION, _t2i("StableDiffusionXLAdapterPipeline")),
    "stable-diffusion-3": (_repainting("SD3ControlNetModel", "StableDiffusion3ControlNetInpaintingPipeline"),),
    "qwenimage": (_repainting("QwenImageControlNetModel", "QwenImageControlNetInpaintPipeline"),),
}


def control_class_of(name: str, config: Mapping[str, Any]) -> str:
    """Return the name of a control model's entry of the table, by its class and its config."""
    return f"{name}{REPAINTS}" if any(config.get(key) for key in MASKED) else name


def modes_of_net(served: ControlClass, config: Mapping[str, Any], channels: Any) -> tuple[str, ...]:
    """Return the modes, without their control, that a control model serves by its config.

    Args:
        served: The entry of its class.
        config: Its config.
        channels: The channels of the latents that the base's denoiser takes.
    """
    # Z-Image's ControlNets of version 2 see a mask and a picture beside the control image.
    knows_masks = "control_in_dim" not in config or config["control_in_dim"] != channels
    return tuple(mode for mode in served.pipelines if mode != "inpaint" or knows_masks)


def control_classes(pipeline: str) -> dict[str, ControlClass]:
    """Return the classes of control models that can steer beside a pipeline class, by name; none where there are none."""
    return {one.name: one for one in _classes(pipeline)}


def _classes(pipeline: str) -> Iterator[ControlClass]:
    family, name = family_of(pipeline), family_name(pipeline) or ""
    own = {mode: found for mode in TABLES if (found := with_controlnet(name, mode))}
    if family.controlnet and own:
        yield ControlClass(
            family.controlnet,
            own,
            several=family.several_controls,
            timed=family.timed_controls,
            numbers=family.control_modes,
            guess=family.guess,
            from_noise=family.from_noise,
        )
    yield from OTHERS.get(name, ())
