"""Checks whether a refiner fits the base that it takes the last steps from, by config files alone: nothing is loaded."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from promptmill.configs.model import Model
from promptmill.configs.schedulers import OWN, SCHEDULERS
from promptmill.configs.weights import RefinerWeights, Weights
from promptmill.pipelines.models.pipeline_classes import family_name
from promptmill.pipelines.models.scheduler_options import is_edm, is_flow, kind_of_class
from promptmill.pipelines.work.errors import ModelError

Config = Mapping[str, Any]
Read = Callable[[Weights, str], Config | None]

FAMILY = "stable-diffusion-xl"  # as diffusers calls it
MODES = ("txt2img", "img2img")  # that a base with a refiner serves
INDEX, UNET, SCHEDULER, TEXT = (
    "model_index.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder_2/config.json",
)
# Of a scheduler's config, what says how much noise a timestep stands for.
NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
CONDITIONS = 5  # numbers that a refiner is told beside the text: two of size, two of cropping, the aesthetics score


def schedulers_between(names: Iterable[str], own: str | None) -> tuple[str, ...]:
    """Return the schedulers whose steps a base and its refiner can divide between them.

    Of second order diffusers' base would stop in the middle of a step. PNDM's first steps are of another kind than the others, and
    the refiner would begin with them.

    Args:
        names: Short names of the schedulers that fit the base.
        own: The class of the scheduler that the base was saved with.
    """
    kinds = {name: kind_of_class(own) if name == OWN else SCHEDULERS[name] for name in names}
    return tuple(name for name, kind in kinds.items() if kind is None or (kind.order == 1 and not kind.extra))


def check_refiner(model: Model, refiner: RefinerWeights, read: Read) -> None:
    """Compare a refiner with the base of a model.

    Args:
        model: The config's model.
        refiner: Its refiner.
        read: Reads a config file of a set of weights; returns None where there is no such file.

    Raises:
        ModelError: The base is no SDXL that begins with text, or the refiner is none, or is made for another base.
    """
    base = {name: read(model.layout, name) or {} for name in (INDEX, UNET, SCHEDULER, TEXT)}
    its = {name: read(refiner, name) or {} for name in (INDEX, UNET, SCHEDULER)}
    _check_classes(model.base, base[INDEX], base[SCHEDULER], refiner.source, its[INDEX])
    unet, wrong = its[UNET], f"model.refiner: {refiner.source} is for another base:"
    pooled, each = unet.get("projection_class_embeddings_input_dim"), unet.get("addition_time_embed_dim")
    whole = pooled - CONDITIONS * each if isinstance(pooled, int) and isinstance(each, int) else None
    for what, value, wanted in (
        ("text embeddings of {} values", unet.get("cross_attention_dim"), base[TEXT].get("hidden_size")),
        ("embeddings of {} values for whole texts", whole, base[TEXT].get("projection_dim")),
        ("latents of {} channels", unet.get("in_channels"), base[UNET].get("in_channels")),
    ):
        if wanted is not None and value != wanted:
            raise ModelError(f"{wrong} it takes {what.format(value)}, and those of {model.base} have {wanted}")
    for key in NOISE:
        if (value := its[SCHEDULER].get(key)) != (wanted := base[SCHEDULER].get(key)):
            raise ModelError(f"{wrong} its {key} is {value}, the base's is {wanted}")
    denoiser = model.denoiser
    other = read(denoiser, "/".join(filter(None, (denoiser.subfolder, "config.json")))) if denoiser else None
    if (base[UNET] if other is None else other).get("time_cond_proj_dim") is not None:
        raise ModelError("model.refiner: the base is distilled from guidance, and a refiner is not; leave the refiner out")


def _check_classes(base: str, index: Config, scheduler: Config, source: str, refiner: Config) -> None:
    kind, name = str(index.get("_class_name")), str(refiner.get("_class_name"))
    if family_name(kind) != FAMILY or index.get("requires_aesthetics_score") is True:
        said = "a refiner itself" if family_name(kind) == FAMILY else f"a {kind}"
        raise ModelError(f"model.refiner: is for a base of SDXL, and {base} is {said}; leave it out")
    if is_edm(scheduler) or is_flow(scheduler):
        raise ModelError(f"model.refiner: {base} has not the noise that SDXL's refiner was trained with; leave it out")
    if not refiner:
        raise ModelError(f"model.refiner: {source} has no {INDEX}; is it a model in diffusers' format?")
    if family_name(name) != FAMILY:
        raise ModelError(f"model.refiner: {source} is a {name}, and only SDXL's refiner is served")
    if refiner.get("requires_aesthetics_score") is not True:
        raise ModelError(f"model.refiner: {source} takes no aesthetics score, as SDXL's refiner does; is it a base?")
