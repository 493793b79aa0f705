"""Reads the capabilities of a diffusion model from its config files alone: no weights, no torch."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from promptmill.configs.schedulers import SCHEDULERS
from promptmill.configs.schema import Model
from promptmill.pipelines.models.clip_sources import hub_file
from promptmill.pipelines.models.families import modes_of
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError

INDEX = "model_index.json"


@dataclass(frozen=True)
class ModelFacts:
    """Holds the limits that a model sets for rows.

    Attributes:
        pipeline: The diffusers class that the model was saved as.
        multiple: Width and height are multiples of this many pixels.
        modes: The modes that the model serves.
        schedulers: The names of the schedulers that fit; a flow-matching model has only its own, called `euler`.
        rescaled: The modes whose pipelines take a guidance rescale.
        safety_checker: Whether the model brings a safety checker.
        left_out: The parts that the model was saved without, such as the T5 of an SD3.
    """

    pipeline: str
    multiple: int
    modes: tuple[str, ...]
    schedulers: tuple[str, ...]
    rescaled: tuple[str, ...]
    safety_checker: bool
    left_out: tuple[str, ...] = ()


def read_facts(model: Model) -> ModelFacts:
    """Read a model's config files, from its folder or from the hub at its revision.

    Raises:
        ModelError: There is no such model, or the model is not in diffusers' format or of a family that is not supported.
    """
    index = _read(model, INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ModelError(f"{model.base}: its {INDEX} names no pipeline class")
    unsupported = f"{model.base}: is of a family ({name}) that is not supported"
    if _class_of(index, "vae") is None:
        raise ModelError(f"{unsupported} yet: it has no vae")
    modes = modes_of(name)
    if not modes:
        raise ModelError(f"{unsupported}: diffusers has no pipeline that makes images with it")
    vae = _read(model, "vae/config.json")
    factor = 2 ** (_levels(vae) - 1)
    if "unet" in index:
        channels = _count(_read(model, "unet/config.json"), "in_channels")
        if channels > _count(vae, "latent_channels"):
            modes = tuple(mode for mode in modes if mode == "inpaint")
        multiple = max(8, factor)
    else:
        # Transformers cut latents into patches of two by two.
        multiple = 2 * factor
        # diffusers' inpainting of SD3 takes a transformer of 16 or 33 channels, and raises for any other.
        if name.startswith("StableDiffusion3") and _count(_read(model, "transformer/config.json"), "in_channels") not in (16, 33):
            modes = tuple(mode for mode in modes if mode != "inpaint")
    if model.controlnets:
        if "unet" not in index:
            raise ModelError(f"{model.base}: model.controlnets are for families with a UNet, and {name} has none")
        modes += tuple(_controlled(mode) for mode in modes)
    flows = (_class_of(index, "scheduler") or "").startswith("FlowMatch")
    schedulers = ("euler",) if flows else tuple(SCHEDULERS)
    rescaled = tuple(mode for mode in modes if "unet" in index and mode in _rescaled(name))
    left_out = tuple(part for part, value in index.items() if value == [None, None])
    return ModelFacts(name, multiple, modes, schedulers, rescaled, _class_of(index, "safety_checker") is not None, left_out)


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
    for key in ("block_out_channels", "encoder_block_out_channels"):
        channels = vae.get(key)
        if isinstance(channels, list) and channels:
            return len(channels)
    return 4


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
