"""Reads the capabilities of a diffusion model from its config files alone: no weights, no torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from promptmill.configs.model import Model
from promptmill.configs.schedulers import OWN, SCHEDULERS
from promptmill.manifests.prompt_rules import NOTHING, Weighting
from promptmill.manifests.rules import Repainting
from promptmill.manifests.steering import ADAPTED, EVERY_WAY, Reading, Steering
from promptmill.pipelines.models.clip_sources import hub_file
from promptmill.pipelines.models.compatibility import class_of_control, config_of, config_of_control, multiple_of
from promptmill.pipelines.models.controls import control_class_of, control_classes, modes_of_net
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.family import DENOISERS, VAES, Family, lacking
from promptmill.pipelines.models.pipeline_classes import TABLES, controlled_mode, modes_of
from promptmill.pipelines.models.priors import index_of_prior
from promptmill.pipelines.models.reference_adapters import reading_of, refused_beside
from promptmill.pipelines.models.refiners import MODES, schedulers_between
from promptmill.pipelines.models.refusals import refusal
from promptmill.pipelines.models.scheduler_options import is_edm, is_flow, kind_of_class, unfit
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.evaluations import UNKNOWN, Counting

INDEX = "model_index.json"
# What the classes of schedulers begin with whose models were trained with a noise of their own that nothing else follows: sCM's
# (arXiv:2410.11081), CogVideoX's, Würstchen's (arXiv:2306.00637) and that of consistency models (arXiv:2303.01469).
APART = ("SCM", "CogVideoX", "DDPMWuerstchen", "CMStochastic")


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
        least_guidance: The least guidance scale that the model's pipelines take.
        steering: What each type of control that the config names can do.
        image_prompts: Whether the model can have adapters for reference images.
        pictures: How many pictures of one row the model takes.
        reading: The limits of reference images.
        left_out: Parts that the pipeline's class could have and the model does not.
        repainting: The limits of rows with a mask.
        unfit: By scheduler, why the config's options of schedulers do not go with it.
        further: Those columns of `parameters.FURTHER` that the model takes.
        most_noise: The largest noise level that the model takes.
        least_prior_steps: The fewest steps that the model's prior takes.
        sizes: The only sizes (width, height) of images; empty where any.
        bends: The size (width, height) that the model renders in place of another one; None where it renders every size.
        most_pixels: The pixels that an image can have; None where any number.
        classes: The number of classes of which each row names one; None where the model draws none.
        prompt_key: The key that a prompt has, as a JSON object; None: prompts are any text.
        true_cfg: The modes in which the model takes a scale of true guidance beside guidance of its own.
        boxes: Whether the model draws phrases in boxes, which each row gives.
        weighting: What of A1111's syntax the model reads in prompts.
        side: The one width and height in pixels that images have; None where rows choose.
        counting: What decides how often the denoiser is evaluated.
        saved_scheduler: The config of the scheduler that the model was saved with.
    """

    pipeline: str
    multiple: int
    modes: tuple[str, ...]
    schedulers: tuple[str, ...]
    rescaled: tuple[str, ...]
    safety_checker: bool
    ignored: tuple[str, ...] = ()
    unguided: float = 1.0
    least_guidance: float = 0.0
    steering: Mapping[str, Steering] = field(default_factory=dict)
    image_prompts: bool = True
    pictures: int = 1
    reading: Reading = EVERY_WAY
    left_out: tuple[str, ...] = ()
    repainting: Repainting = field(default_factory=Repainting)
    unfit: Mapping[str, str] = field(default_factory=dict)
    further: tuple[str, ...] = ()
    most_noise: int = 350
    least_prior_steps: int = 1
    sizes: tuple[tuple[int, int], ...] = ()
    bends: Callable[[int, int], tuple[int, int]] | None = None
    most_pixels: int | None = None
    classes: int | None = None
    prompt_key: str | None = None
    true_cfg: tuple[str, ...] = ()
    boxes: bool = False
    weighting: Weighting = NOTHING
    side: tuple[int, int] | None = None
    counting: Counting = field(default_factory=Counting)
    saved_scheduler: Mapping[str, Any] = field(default_factory=dict)


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
    if (package := lacking(family_of(name))) is not None:
        raise ModelError(f"{model.base}: {name} needs {package}: pip install 'promptmill[{package}]'")
    unsupported = f"{model.base}: is of a family ({name}) that is not supported"
    decoder = next((part for part in VAES if _class_of(index, part) is not None), None)
    if decoder is None and family_of(name).latent:
        raise ModelError(f"{unsupported} yet: it has no vae")
    for part, other in family_of(name).beside.items():
        if _class_of(index, part) is None:
            raise ModelError(f"{model.base}: has no {part}; add that of {other} to a copy in a folder, and to its {INDEX}")
    if index.get("sample_sigmas"):
        raise ModelError(f"{model.base}: brings a schedule of its own (sample_sigmas), whatever steps rows ask for; set it to null")
    modes = modes_of(name)
    if not modes:
        raise ModelError(f"{unsupported}: diffusers has no pipeline that makes images with it")
    vae = _read(model, f"{decoder}/config.json") if decoder and family_of(name).latent else {}
    factor = 2 ** (_levels(vae) - 1) if vae else 1
    denoiser = next((_read(model, f"{part}/config.json") for part in DENOISERS if part in index), {})
    prior = index_of_prior(model, name, config_of)
    if "unet" in index:
        channels = _count(denoiser, "in_channels")
        if channels > _count(vae, "latent_channels") and "inpaint" in modes:
            modes = ("inpaint",)
        elif family_of(name).boxes:
            modes = ("img2img",) if channels > _count(vae, "latent_channels") else ("txt2img",)
        elif family_of(name).masked:
            modes = tuple(mode for mode in modes if mode != "inpaint")
        if index.get("requires_aesthetics_score") is True:
            modes = tuple(mode for mode in modes if mode != "txt2img")  # SDXL's refiner, which begins with a picture
        multiple = max(8, factor * family_of(name).enlarges)
    else:
        multiple = factor * (family_of(name).patch or _patch(denoiser))
        # diffusers' inpainting of SD3 takes a transformer of 16 or 33 channels, and raises for any other.
        if name.startswith("StableDiffusion3") and _count(denoiser, "in_channels") not in (16, 33):
            modes = tuple(mode for mode in modes if mode != "inpaint")
    if (multiple_by := family_of(name).multiple_by) is not None:
        multiple = multiple_by(index, prior, factor)
    steering = _steering(model, name, modes, denoiser.get("in_channels")) if model.controlnets else {}
    modes += tuple(mode for mode in map(controlled_mode, TABLES) if any(mode in can.modes for can in steering.values()))
    image_prompts = bool(family_of(name).redux or family_of(name).image_prompts)
    if model.references and not image_prompts:
        raise ModelError(f"{model.base}: model.references: {name} {refused_beside(name)}; {ADAPTED}")
    scheduler = _scheduler_config(model, _class_of(index, "scheduler"))
    schedulers = _schedulers(name, scheduler)
    if model.refiner:
        modes = tuple(mode for mode in modes if mode in MODES)
        schedulers = schedulers_between(schedulers, _class_of(index, "scheduler"))
    family = family_of(name)
    if family.guiders and not any(_class_of(index, part) for part in family.guiders):
        family = replace(family, embedded=True, negative=False)
    ignored = _ignored(family, index, denoiser, modes)
    rescaled = tuple(mode for mode in modes if "unet" in index and mode in _rescaled(name))
    return ModelFacts(
        name,
        multiple,
        modes,
        schedulers,
        rescaled,
        safety_checker=model.single_file is None and _class_of(index, "safety_checker") is not None,
        ignored=ignored,
        unguided=family_of(name).unguided,
        least_guidance=family_of(name).least_guidance,
        steering=steering,
        image_prompts=image_prompts,
        pictures=family.pictures,
        reading=reading_of(model, name, modes) if model.references else EVERY_WAY,
        further=family_of(name).further,
        least_prior_steps=family_of(name).least_prior_steps,
        most_noise=_count(index, "max_noise_level") if "max_noise_level" in index else family_of(name).most_noise,
        sizes=family.sizes,
        bends=family.bends,
        most_pixels=_most_pixels(family, denoiser, factor),
        classes=denoiser.get(family_of(name).classes or ""),
        prompt_key=family.prompt_key,
        true_cfg=tuple(mode for mode in modes if mode in family.true_cfg),
        boxes=family.boxes,
        weighting=_weighting(family, model),
        # What GLIGEN repaints has the size of the VAE's samples.
        side=_side(denoiser, factor) if family.fixed else _side(vae, 1) if family.boxes and modes == ("img2img",) else None,
        left_out=tuple(part for part, kind in index.items() if kind == [None, None]),
        counting=_counting(family, "guidance_scale" in ignored, denoiser, scheduler),
        repainting=family.repainting,
        saved_scheduler=scheduler,
        unfit=unfit(model.scheduler_options, schedulers, scheduler, family_of(name).sized),
    )


def class_saved(model: Model) -> str | None:
    """Return the pipeline class that a model was saved as; None where no index says so."""
    try:
        name = _read(model, INDEX).get("_class_name")
    except ModelError:
        return None
    return name if isinstance(name, str) else None


def _steering(model: Model, pipeline: str, modes: Sequence[str], channels: Any) -> dict[str, Steering]:
    """Return the limits of each type of control; a type whose class is not served is left out, since `check_fits` refuses it."""
    classes = control_classes(pipeline)
    found = {}
    for kind, weights in model.controlnets.items():
        config = config_of_control(weights)
        served = classes.get(control_class_of(class_of_control(weights, pipeline), config))
        if served is not None:
            able = tuple(
                controlled_mode(mode) for mode in modes_of_net(served, config, channels) if mode in modes or served.repaints
            )
            said = f"{served.name} in guess mode" if weights.guess else served.name
            found[kind] = Steering(
                said,
                able,
                served.several,
                served.timed,
                multiple_of(weights) if served.part == "adapter" else 1,
                served.repaints,
                tuple(controlled_mode(mode) for mode in served.from_noise),
                weights.face,
            )
    if not classes or (found and not any(can.modes for can in found.values())):
        raise ModelError(f"{model.base}: model.controlnets: there are no ControlNets for {pipeline} that promptmill can load")
    return found


def _counting(family: Family, unguided: bool, denoiser: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Counting:
    """Return the values by which a model's evaluations are counted; `unguided` says that the model ignores the guidance scale."""
    once = unguided or family.embedded or _takes_guidance(family, denoiser)
    own = kind_of_class(scheduler.get("_class_name")) or UNKNOWN
    # Two evaluations, or three by text and picture; where the two go through the denoiser one after the other, `rows` is 1.
    each = 1 if once else max(2, family.rows)
    return Counting(each, family.unguided, family.steps_left, own, family.negative_too, 2 * family.inner)


def _takes_guidance(family: Family, unet: Mapping[str, Any]) -> bool:
    """Return whether a UNet is distilled from guidance, and so takes the scale as an input, as some transformers do."""
    return family.projected and unet.get("time_cond_proj_dim") is not None


def _weighting(family: Family, model: Model) -> Weighting:
    """Return the constructs of A1111's syntax that a model reads. A refiner has steps and text encoders of its own."""
    clip = family.weighting == "clip" and not model.refiner
    return Weighting(weights=clip or family.weighting == "t5", parts=clip, changes=clip)


def _most_pixels(family: Family, denoiser: Mapping[str, Any], factor: int) -> int | None:
    """Return the pixels of the largest image that a denoiser has places for, by its config."""
    match denoiser.get(family.most_pixels or ""):
        case [int(height), int(width)]:
            return height * width * factor**2
    return None


def _ignored(family: Family, index: Mapping[str, Any], denoiser: Mapping[str, Any], modes: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that a family ignores, or one of its models that is distilled."""
    distilled = index.get("is_distilled") is True
    guidance = family.guidance is not None and not distilled and (denoiser.get("guidance_embeds") is True or not family.embedded)
    takes = {
        "prompt": family.prompted,
        "negative_prompt": family.negative and not _takes_guidance(family, denoiser),
        "guidance_scale": guidance,
        "strength": family.strength and not (family.masked and [*modes] == ["inpaint"]),
    }
    return tuple(name for name, has in takes.items() if not has)


def _scheduler_config(model: Model, own: str | None) -> dict[str, Any]:
    return {} if own is None else {**_read(model, "scheduler/scheduler_config.json"), "_class_name": own}


def _schedulers(pipeline: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the schedulers that the pipelines of a family can call, and whose noise is that of the model."""
    solvers = family_of(pipeline).solvers
    if is_flow(config):
        # A schedule that depends on the size comes with a number that these do not take.
        rigid = ("heun", "dpmpp_2m") if config.get("use_dynamic_shifting") else ()
        return (*(name for name in solvers or ("euler",) if name not in rigid), OWN)
    if is_edm(config):
        return (*(name for name in solvers or SCHEDULERS if SCHEDULERS[name].edm), OWN)
    fitting = () if (own := str(config.get("_class_name"))).startswith(APART) else tuple(solvers or SCHEDULERS)
    drawn = family_of(pipeline).drawing or any(own in SCHEDULERS[name].classes for name in fitting)
    return (*fitting, OWN) if drawn else fitting


def _rescaled(pipeline: str) -> tuple[str, ...]:
    """Return the modes in which diffusers' pipelines of a family take a guidance rescale (arXiv:2305.08891, section 3.4)."""
    if pipeline.startswith("StableDiffusionXL"):
        return ("txt2img", "img2img", "inpaint", "controlnet_inpaint")
    return ("txt2img",) if pipeline.startswith("StableDiffusion") else ()


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


def _side(denoiser: Mapping[str, Any], factor: int) -> tuple[int, int] | None:
    """Return the width and the height that a denoiser's config says of its images, which are so many times larger, in pixels."""
    match denoiser.get("sample_size"):
        case int(side):
            return factor * side, factor * side
        case [int(height), int(width)]:
            return factor * width, factor * height
    return None


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
    layout = model.layout
    place = fetched(layout.source, layout.revision, name)
    try:
        content = json.loads(place.read_text())
    except FileNotFoundError:
        raise ModelError(f"{layout.source}: has no {name}; is it a model in diffusers' format?") from None
    except NotADirectoryError:
        need = "name a model in diffusers' format with the same parts as model.base_config"
        raise ModelError(f"{layout.source}: is a single file, which has no {name}; {need}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{layout.source}: {name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{layout.source}: {name} holds {type(content).__name__}, not keys and values")
    return content


@cache
def fetched(source: str, revision: str | None, name: str) -> Path:
    """Return the place of a model's file, which is fetched where it lies in the hub; in a folder it need not be there."""
    folder = local_folder(source)
    return folder / name if folder is not None else hub_file(source, name, revision)
