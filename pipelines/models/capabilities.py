"""Reads the capabilities of a diffusion model from its config files alone: no weights, no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from promptmill.configs.schedulers import OWN, SCHEDULERS
from promptmill.configs.schema import Model
from promptmill.pipelines.models.clip_sources import hub_file
from promptmill.pipelines.models.families import Family, family_of, refusal
from promptmill.pipelines.models.pipeline_classes import controlled_modes_of, modes_of
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError

INDEX = "model_index.json"
# Schedulers of models that were trained with a noise of their own, as EDM (arXiv:2206.00364) and sCM (arXiv:2410.11081) have it.
APART = ("EDM", "SCM", "CogVideoX")


@dataclass(frozen=True)
class ModelFacts:
    """Holds the limits that a model sets for rows.

    Attributes:
        pipeline: The diffusers class that the model was saved as.
        multiple: Width and height are multiples of this many pixels.
        modes: The modes that the model serves.
        schedulers: The names of the schedulers that fit.
        rescaled: The modes whose pipelines take a guidance rescale.
        safety_checker: Whether the model brings a safety checker.
        ignored: Columns of rows that have no effect on the model's images.
        unguided: The largest guidance scale that means no guidance.
        several_controls: Whether its pipelines take several ControlNets at once.
        timed_controls: Whether a ControlNet can begin later and end sooner than the steps do.
        left_out: Parts that the pipeline's class could have and the model does not.
        further: Those columns of `requests.FURTHER` that the model takes.
        most_noise: The largest noise level that the model takes.
    """

    pipeline: str
    multiple: int
    modes: tuple[str, ...]
    schedulers: tuple[str, ...]
    rescaled: tuple[str, ...]
    safety_checker: bool
    ignored: tuple[str, ...] = ()
    unguided: float = 1.0
    several_controls: bool = True
    timed_controls: bool = True
    left_out: tuple[str, ...] = ()
    further: tuple[str, ...] = ()
    most_noise: int = 350


def read_facts(model: Model) -> ModelFacts:
    """Read a model's config files, from its folder or from the hub at its revision.

    Raises:
        ModelError: There is no such model, or the model is not in diffusers' format or of a family that is not supported.
    """
    index = _read(model, INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ModelError(f"{model.base}: its {INDEX} names no pipeline class")
    if (reason := refusal(name)) is not None:
        raise ModelError(f"{model.base}: {name} {reason}")
    unsupported = f"{model.base}: is of a family ({name}) that is not supported"
    if _class_of(index, "vae") is None:
        raise ModelError(f"{unsupported} yet: it has no vae")
    modes = modes_of(name)
    if not modes:
        raise ModelError(f"{unsupported}: diffusers has no pipeline that makes images with it")
    vae = _read(model, "vae/config.json")
    factor = 2 ** (_levels(vae) - 1)
    denoiser = next((_read(model, f"{part}/config.json") for part in ("unet", "transformer") if part in index), {})
    if "unet" in index:
        channels = _count(denoiser, "in_channels")
        if channels > _count(vae, "latent_channels") and "inpaint" in modes:
            modes = ("inpaint",)
        if index.get("requires_aesthetics_score") is True:
            modes = tuple(mode for mode in modes if mode != "txt2img")  # SDXL's refiner, which begins with a picture
        multiple = max(8, factor * family_of(name).enlarges)
    else:
        multiple = factor * (family_of(name).patch or _patch(denoiser))
        # diffusers' inpainting of SD3 takes a transformer of 16 or 33 channels, and raises for any other.
        if name.startswith("StableDiffusion3") and _count(denoiser, "in_channels") not in (16, 33):
            modes = tuple(mode for mode in modes if mode != "inpaint")
    if model.controlnets:
        controlled = [mode for mode in controlled_modes_of(name) if mode in modes]
        if not controlled or family_of(name).controlnet is None:
            raise ModelError(f"{model.base}: model.controlnets: there are no ControlNets for {name} that promptmill can load")
        modes += tuple(_controlled(mode) for mode in controlled)
    schedulers = _schedulers(model, name, _class_of(index, "scheduler"))
    rescaled = tuple(mode for mode in modes if "unet" in index and mode in _rescaled(name))
    return ModelFacts(
        name,
        multiple,
        modes,
        schedulers,
        rescaled,
        safety_checker=_class_of(index, "safety_checker") is not None,
        ignored=_ignored(family_of(name), index, denoiser),
        unguided=family_of(name).unguided,
        several_controls=family_of(name).several_controls,
        timed_controls=family_of(name).timed_controls,
        further=family_of(name).further,
        most_noise=_count(index, "max_noise_level") if "max_noise_level" in index else family_of(name).most_noise,
        left_out=tuple(part for part, kind in index.items() if kind == [None, None]),
    )


def _ignored(family: Family, index: Mapping[str, Any], denoiser: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that a family ignores, or one of its models that is distilled."""
    # A UNet that is distilled from guidance takes the scale as an input, as some transformers do.
    as_input = family.projected and denoiser.get("time_cond_proj_dim") is not None
    distilled = index.get("is_distilled") is True
    guidance = family.guidance is not None and not distilled and (denoiser.get("guidance_embeds") is True or not family.embedded)
    takes = {"negative_prompt": family.negative and not as_input, "guidance_scale": guidance, "strength": family.strength}
    return tuple(name for name, has in takes.items() if not has)


def is_flow(scheduler: Mapping[str, Any]) -> bool:
    """Return whether a scheduler's config is that of a flow-matching model."""
    return str(scheduler.get("_class_name")).startswith("FlowMatch") or scheduler.get("prediction_type") == "flow_prediction"


def _schedulers(model: Model, pipeline: str, own: str | None) -> tuple[str, ...]:
    """Return the names of the schedulers that the pipelines of a family can call, and whose noise is that of the model."""
    solvers = family_of(pipeline).solvers
    config = {} if own is None else _read(model, "scheduler/scheduler_config.json")
    if str(own).startswith("FlowMatch") or is_flow(config):
        # A schedule that depends on the size comes with a number that these do not take.
        rigid = ("heun", "dpmpp_2m") if config.get("use_dynamic_shifting") else ()
        return (*(name for name in solvers or ("euler",) if name not in rigid), OWN)
    return (OWN,) if str(own).startswith(APART) else (*(solvers or SCHEDULERS), OWN)


def _rescaled(pipeline: str) -> tuple[str, ...]:
    """Return the modes in which diffusers' pipelines of a family take a guidance rescale (arXiv:2305.08891, section 3.4)."""
    if pipeline.startswith("StableDiffusionXL"):
        return ("txt2img", "img2img", "inpaint", "controlnet_inpaint")
    return ("txt2img",) if pipeline.startswith("StableDiffusion") else ()


def _controlled(mode: str) -> str:
    return "controlnet" if mode == "txt2img" else f"controlnet_{mode}"


def _class_of(index: dict[str, Any], part: str) -> str | None:
    """Return the class of a part of a pipeline: written as [library, class], both null where the part is left out."""
    match index.get(part):
        case [str(), str(name)]:
            return name
    return None


def _levels(vae: dict[str, Any]) -> int:
    """Return the number of sizes that a VAE goes through, each half the last; deep-compression VAEs have two equal lists."""
    for key in ("block_out_channels", "encoder_block_out_channels", "dim_mult"):
        channels = vae.get(key)
        if isinstance(channels, list) and channels:
            return len(channels)
    return 4


def _patch(transformer: dict[str, Any]) -> int:
    """Return the latents that a side of a transformer's patch has, by its config: one number, or a list with one for each side."""
    for key in ("patch_size", "all_patch_size"):
        match transformer.get(key):
            case int(size) | [int(size), *_]:
                return size
    return 2


def _count(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else 4


def _read(model: Model, name: str) -> dict[str, Any]:
    place = _fetch(model.base, model.revision, name)
    try:
        content = json.loads(place.read_text())
    except FileNotFoundError:
        raise ModelError(f"{model.base}: has no {name}; is it a model in diffusers' format?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.base}: {name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{model.base}: {name} holds {type(content).__name__}, not keys and values")
    return content


@cache
def _fetch(source: str, revision: str | None, name: str) -> Path:
    folder = local_folder(source)
    return folder / name if folder is not None else hub_file(source, name, revision)
