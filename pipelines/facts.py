"""What a diffusion model can do, read from its config files alone: no weights, no torch."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from configs.parameters import MODES
from configs.schedulers import SCHEDULERS
from configs.schema import Model
from pipelines.clip_sources import hub_file
from pipelines.errors import ModelError
from pipelines.sources import local_folder

INDEX = "model_index.json"


@dataclass(frozen=True)
class ModelFacts:
    """What rows are held to, because of the model.

    Attributes:
        pipeline: The diffusers class that the model was saved as.
        multiple: Width and height are multiples of this many pixels.
        modes: Those it serves.
        schedulers: The names that fit it; a flow-matching model has only its own, called `euler`.
        safety_checker: Whether it brings one.
    """

    pipeline: str
    multiple: int
    modes: tuple[str, ...]
    schedulers: tuple[str, ...]
    safety_checker: bool


def read_facts(model: Model) -> ModelFacts:
    """Read a model's config files, from its folder or from the hub at its revision.

    Raises:
        ModelError: There is no such model, or it is not in diffusers' format.
    """
    index = _read(model, INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise ModelError(f"{model.base}: its {INDEX} names no pipeline class")
    vae = _read(model, "vae/config.json")
    factor = 2 ** (len(vae.get("block_out_channels", [0] * 4)) - 1)
    if "unet" in index:
        channels = _read(model, "unet/config.json").get("in_channels", 4)
        inpainting_only = channels > vae.get("latent_channels", 4)
        multiple = max(8, factor)
    else:
        # Transformers cut latents into patches of two by two.
        inpainting_only, multiple = False, 2 * factor
    modes = tuple(mode for mode in MODES if mode.endswith("inpaint")) if inpainting_only else MODES
    if not model.controlnets:
        modes = tuple(mode for mode in modes if not mode.startswith("controlnet"))
    flows = str((index.get("scheduler") or [None, ""])[1]).startswith("FlowMatch")
    return ModelFacts(
        name, multiple, modes, ("euler",) if flows else tuple(SCHEDULERS), bool((index.get("safety_checker") or [None])[0])
    )


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
