"""Checks whether the parts that a config adds to its base model fit, from config files and weight headers: nothing is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from promptmill.configs.model import Model
from promptmill.configs.weights import ControlNetWeights, PartWeights, Weights
from promptmill.pipelines.models.annotators import check_annotators
from promptmill.pipelines.models.cached_blocks import is_cacheable
from promptmill.pipelines.models.clip_sources import hub_file
from promptmill.pipelines.models.controls import MASKED, ControlClass, control_class_of, control_classes
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.priors import check_prior
from promptmill.pipelines.models.reference_adapters import check_redux, check_references
from promptmill.pipelines.models.refiners import check_refiner
from promptmill.pipelines.models.sources import local_folder, part_place
from promptmill.pipelines.models.transformer_adapters import check_flux_adapters, check_pictured, check_sd3_adapter
from promptmill.pipelines.work.errors import ModelError

VAE, CONTROLNET = "AutoencoderKL", "ControlNetModel"
DENOISERS = ("transformer", "unet")
QUANTIZED = (*DENOISERS, "text_encoder")  # what names of parts begin with that can be quantised, or offloaded
# Of text embeddings and layers, as configs of UNets and transformers name them: a ControlNet has those of its base.
WIDTHS = ("cross_attention_dim", "block_out_channels", "joint_attention_dim", "pooled_projection_dim", "caption_channels", "dim")
PROCESSOR = "feature_extractor/preprocessor_config.json"
LORA_FILE = "pytorch_lora_weights.safetensors"


def check_fits(model: Model) -> None:
    """Compare ControlNets and LoRAs with the denoiser of the base model, and check the classes of all parts that a config names.

    LoRAs are compared in families with a UNet only.

    Raises:
        ModelError: A part is made for another base, and the line says by which size; or is of a class that is not served.
    """
    whole = config_of(model.layout, "model_index.json") if model.vae else None
    if whole is not None and not _is_part(whole.get("vae")):
        raise ModelError(f"model.vae: {model.base} has no vae that could be replaced; leave it out")
    if model.vae and "Autoencoder" not in (kind := class_named(model.vae, VAE)):
        raise ModelError(f"model.vae: {model.vae.source} is a {kind}, which is no VAE")
    if model.denoiser:
        _check_denoiser(model, model.denoiser)
    if model.kernels.cache and not is_cacheable(kind := denoiser_of(model)[1]):
        raise ModelError(f"model.kernels.cache: {model.base} has a {kind}, with which a step cache does not go; leave it out")
    if model.refiner:
        check_refiner(model, model.refiner, config_of)
    if model.prior:
        check_prior(model, model.prior, config_of)
    check_annotators(model, config_of)
    index = config_of(model.layout, "model_index.json") or {} if model.quantize else {}
    if lacking := [name for name in model.quantize if not _is_part(index.get(name))]:
        parts = ", ".join(sorted(name for name, kind in index.items() if name.startswith(QUANTIZED) and _is_part(kind)))
        raise ModelError(f"model.quantize: {model.base} has no {lacking[0]}; what can be quantised there: {parts}")
    name, _ = denoiser_of(model) if model.controlnets or model.loras or model.references else ("", "")
    denoiser = (config_of(model.layout, f"{name}/config.json") if name else None) or {}
    for kind, weights in model.controlnets.items():
        _check_controlnet(model, denoiser, f"model.controlnets.{kind}", weights)
    if model.references:
        _check_references(model, name, denoiser)
    wanted = denoiser.get("cross_attention_dim") if name == "unet" else None
    for lora in model.loras:
        width = _lora_width(lora, lora.weight_name)
        if isinstance(wanted, int) and width is not None and width != wanted:
            said = f"it adapts text embeddings of {width} values, the base's have {wanted}"
            raise ModelError(f"model.loras.{lora.name}: {lora.source} is for another family of models: {said}")


def _check_references(model: Model, name: str, denoiser: Mapping[str, Any]) -> None:
    kind = family_of(str((config_of(model.layout, "model_index.json") or {}).get("_class_name"))).image_prompts
    if name == "transformer":
        check_pictured(model)
    if kind == "flux" and model.redux:
        check_redux(model, denoiser, config_of)
        return
    encoder = model.reads_references
    its = config_of(encoder, "/".join(filter(None, (encoder.subfolder, "config.json")))) if encoder else None
    own = _is_part((config_of(model.layout, "model_index.json") or {}).get("feature_extractor"))
    processor = config_of(model.layout, PROCESSOR) if own else None
    if kind == "flux":
        check_flux_adapters(model, denoiser, its, processor)
    elif kind == "sd3":
        beside = processor_beside(encoder) if encoder and not own else None
        check_sd3_adapter(model, denoiser, its, processor or beside)
    else:
        check_references(model, denoiser, its, processor)


def processor_beside(encoder: PartWeights) -> dict[str, Any] | None:
    """Return the config of the image processor in the folder of an image encoder; None where there is none."""
    return config_of(encoder, "/".join(filter(None, (encoder.subfolder, PROCESSOR.rpartition("/")[2]))))


def _is_part(entry: Any) -> bool:
    """Return whether an entry of a model's index names a part: [library, class], both null where the part is left out."""
    return isinstance(entry, list) and any(entry)


def denoiser_of(model: Model) -> tuple[str, str]:
    """Return the name of the base's denoiser among the pipeline's parts, unet or transformer, and the denoiser's class.

    Raises:
        ModelError: The base has neither.
    """
    index = config_of(model.layout, "model_index.json") or {}
    for name in DENOISERS:
        match index.get(name):
            case [str(), str(kind)]:
                return name, kind
    raise ModelError(f"{model.base}: has neither a {' nor a '.join(DENOISERS)} that model.denoiser could replace")


def _check_controlnet(model: Model, denoiser: Mapping[str, Any], where: str, weights: ControlNetWeights) -> None:
    net = config_of(weights, "config.json")
    if net is None:
        raise ModelError(f"{where}: {weights.source} has no config.json; is it a ControlNet in diffusers' format?")
    index = config_of(model.layout, "model_index.json") or {}
    pipeline = str(index.get("_class_name"))
    classes = control_classes(pipeline)
    kind = class_named(weights, CONTROLNET)
    if (served := classes.get(control_class_of(kind, net))) is None:
        if any(net.get(key) for key in MASKED) and kind in classes:
            raise ModelError(f"{where}: {weights.source} repaints by a mask of its own, for which {pipeline} has no pipeline")
        only = f"only a {' or a '.join(classes)} is" if classes else f"{pipeline} has none"
        raise ModelError(f"{where}: {weights.source} is a {kind}, which is not served; {only}")
    _check_mode(where, weights, served, net)
    if served.part == "adapter":
        _check_features(where, weights, denoiser, net)
    for key in WIDTHS:
        if (its := net.get(key)) is not None and (base := denoiser.get(key)) is not None and its != base:
            raise ModelError(f"{where}: {weights.source} is for another base model: its {key} is {its}, the base's is {base}")


def _check_features(where: str, weights: Weights, denoiser: Mapping[str, Any], net: Mapping[str, Any]) -> None:
    """Compare the features that a T2I-Adapter adds to with those of the UNet's levels."""
    its, base = net.get("channels") or [], denoiser.get("block_out_channels") or []
    if any(one != other for one, other in zip(its, base, strict=False)):
        raise ModelError(f"{where}: {weights.source} is for another base model: its channels are {its}, the base's {base}")


def _check_mode(where: str, weights: ControlNetWeights, served: ControlClass, net: Mapping[str, Any]) -> None:
    number = net.get(served.numbers) if served.numbers else None
    if number is None and served.together:
        number = 6  # what diffusers takes where the config says nothing
    if isinstance(number, int) and number > 0:
        if weights.mode is None or weights.mode >= number:
            said = "names no mode" if weights.mode is None else f"names mode {weights.mode}"
            raise ModelError(f"{where}: {said}, and {weights.source} has modes from 0 to {number - 1}: set {where}.mode to one")
    elif weights.mode is not None:
        raise ModelError(f"{where}.mode: {weights.source} is a {served.name} without modes; leave it out")
    if weights.face is not None and served.name != CONTROLNET:
        raise ModelError(f"{where}.face: no {served.name} reads faces, a {CONTROLNET} may (InstantID); leave it out")
    if weights.guess and not served.guess:
        raise ModelError(f"{where}.guess: there is no guess mode for a {served.name}; leave it out")


def _check_denoiser(model: Model, given: PartWeights) -> None:
    name, kind = denoiser_of(model)
    place = part_place(given)
    if given.weight_name or (place is not None and place.is_file()):
        return  # a file of weights alone names no class; the loader compares the tensors' names and sizes
    file = "/".join(filter(None, (given.subfolder, "config.json")))
    config = config_of(given, file)
    if config is None:
        where = f"{name} in a subfolder" if given.subfolder is None else "denoiser in diffusers' format there"
        raise ModelError(f"model.denoiser: {given.source} has no {file}; is it a {where}? Name it as model.denoiser.subfolder")
    if (its := config.get("_class_name")) != kind:
        raise ModelError(f"model.denoiser: {given.source} is a {its}, and the {name} of {model.base} is a {kind}")


def class_named(weights: Weights, usual: str) -> str:
    """Return the diffusers class that a part's own config names; the usual one where it names none."""
    name = (config_of(weights, "config.json") or {}).get("_class_name")
    return name if isinstance(name, str) else usual


def class_of_control(weights: Weights, pipeline: str) -> str:
    """Return the class of a control model beside a pipeline class; the family's own where there is no config to read."""
    usual = family_of(pipeline).controlnet or CONTROLNET
    try:
        return class_named(weights, usual)
    except ModelError:
        return usual  # loading says what is missing


def config_of_control(weights: Weights) -> dict[str, Any]:
    """Return the config of a control model; empty where there is none to read."""
    try:
        return config_of(weights, "config.json") or {}
    except ModelError:
        return {}


def multiple_of(weights: Weights) -> int:
    """Return the pixels of a side of the squares that a T2I-Adapter folds into channels, by its config."""
    try:
        side = (config_of(weights, "config.json") or {}).get("downscale_factor")
    except ModelError:
        side = None
    return side if isinstance(side, int) and side > 0 else 8


def config_of(weights: Weights, name: str) -> dict[str, Any] | None:
    """Return a config file of a set of weights; None where there is no such file, or none that can be read."""
    place = _place(weights, name)
    try:
        content = json.loads(place.read_text()) if place else None
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _place(weights: Weights, name: str) -> Path | None:
    folder = local_folder(weights.source)
    if folder is not None:
        return folder if folder.is_file() else folder / name
    try:
        return hub_file(weights.source, name, weights.revision)
    except ModelError:
        return None  # a transformer has no unet/; loading reports a file that cannot be fetched at all


def _lora_width(weights: Weights, name: str | None) -> int | None:
    """Return the width of the text embeddings that a LoRA's cross-attention takes, or None where it has no cross-attention."""
    place = _place(weights, name or LORA_FILE)
    if place is None or not place.is_file():
        return None
    with safe_open(place, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118 (it is no mapping)
            # Cross-attention's keys, as diffusers, peft and kohya write them.
            if "attn2" in key and "to_k" in key and ("lora_A" in key or "lora.down" in key or "lora_down" in key):
                return int(file.get_slice(key).get_shape()[1])
    return None
