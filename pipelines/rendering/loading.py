"""Loads a diffusion model once, by diffusers' own loaders, so that one set of weights in memory serves every mode."""

import os
from collections.abc import Callable
from typing import Any

import torch

from promptmill.configs.model import Model
from promptmill.configs.weights import ControlNetWeights, PartWeights, RefinerWeights, Weights
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.compatibility import CONTROLNET, QUANTIZED, VAE, class_named, denoiser_of
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.family import VAES, Family
from promptmill.pipelines.models.pipeline_classes import class_for
from promptmill.pipelines.rendering.adapter_loading import hold_adapters, load_adapters
from promptmill.pipelines.rendering.annotators import Annotators
from promptmill.pipelines.rendering.hardware import WORKSPACE
from promptmill.pipelines.rendering.kernels import put_on
from promptmill.pipelines.rendering.libraries import diffusers, of_diffusers, put_back, transformers
from promptmill.pipelines.rendering.loaded_model import LoadedModel, part_of, unmark
from promptmill.pipelines.rendering.merging import MergedLoras
from promptmill.pipelines.rendering.modules import kept_in_fp32
from promptmill.pipelines.rendering.priors import Prior
from promptmill.pipelines.rendering.quantised import quantisation, quantisation_of_part
from promptmill.pipelines.rendering.redux import ReduxReferences
from promptmill.pipelines.rendering.refining import Refiner
from promptmill.pipelines.rendering.weight_files import load_by, load_denoiser, load_single_file
from promptmill.pipelines.work.errors import ModelError


def device_here() -> torch.device:
    """Return the first GPU, or the CPU, set up so that no kernel is chosen by timing, which would differ between processes."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    for name, value in WORKSPACE.items():  # CUDA reads the variable as it starts
        os.environ.setdefault(name, value)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(model: Model, device: torch.device | None = None) -> LoadedModel:
    """Load the model of a config.

    Raises:
        ModelError: One line on what cannot be loaded, and why.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = device or device_here()
    dtype = getattr(torch, model.dtype)
    facts = read_facts(model)
    # Said as None, what the model leaves out (Stable Diffusion 3 goes without its T5) is not taken for missing.
    parts: dict[str, Any] = dict.fromkeys(facts.left_out)
    if model.vae:
        # The class is the one that the VAE's config names: another class loads the weights that it knows and leaves others random.
        kind = class_named(model.vae, VAE)
        if not hasattr(diffusers, kind):
            raise ModelError(f"{model.vae.source}: is a {kind}, which diffusers {diffusers.__version__} does not have")
        parts["vae"] = load_by(of_diffusers(kind).from_pretrained, model.vae, dtype)
    if model.denoiser:
        name, kind = denoiser_of(model)
        smaller = quantisation_of_part(model.quantize.get(name), name, dtype, device)
        parts[name] = load_denoiser(model, model.denoiser, name, kind, dtype, smaller)
    if facts.safety_checker and not model.safety_checker:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    if (moved := family_of(facts.pipeline).moved) is not None:
        put_back(moved)
    # From text to images, but for what cannot: an inpainting model (more channels in than latents have), one that edits images.
    pipeline = of_diffusers(class_for(facts.pipeline, facts.modes[0]))
    base = (
        load_single_file(model, pipeline, dtype, parts)
        if model.single_file
        else load_by(
            pipeline.from_pretrained,
            model.layout,
            dtype,
            **parts,
            **quantisation({part: kind for part, kind in model.quantize.items() if part not in parts}, dtype, device),
        )
    )
    if model.vae_tiling:
        vae = part_of(base, VAES)
        if not hasattr(vae, "enable_tiling"):
            raise ModelError(f"model.vae_tiling: {type(vae).__name__} has no tiles; set it to false")
        vae.enable_tiling()
    # Pipelines that do not lift the VAE, as Stable Diffusion's, have it compute in fp16 whatever its config says.
    lifts = dtype == torch.float16 and hasattr(base, "upcast_vae")
    if lifts and (vae := part_of(base, VAES)) is not None and getattr(vae.config, "force_upcast", False):
        kept_in_fp32(vae)
    unmark(base)
    base.set_progress_bar_config(disable=True)
    encoder = getattr(base, "text_encoder", None)
    if model.clip_skip and encoder is not None and not hasattr(encoder, "text_model"):
        # diffusers 0.42 reaches for the layer norm through an attribute that transformers 5 took away; not a child, which would
        # be the module itself, so past torch's own __setattr__.
        object.__setattr__(encoder, "text_model", encoder)
    for inversion in model.textual_inversions:
        load_by(_loader(base, "textual_inversion"), inversion, None, token=inversion.token)
    for lora in model.loras:
        load_by(_loader(base, "lora_weights"), lora, None, adapter_name=lora.name)
    family = family_of(facts.pipeline)
    adapters, redux = family.image_prompts, family.redux if model.redux else None
    if model.references and redux is None and adapters is not None:
        load_adapters(base, model, adapters, dtype)
    nets: dict[ControlNetWeights, Any] = {}
    for one in model.controlnets.values():
        if (weights := one.model_copy(update={"mode": None})) not in nets:
            nets[weights] = load_by(of_diffusers(class_named(one, CONTROLNET)).from_pretrained, one, dtype).to(device)
    controlnets = {name: nets[one.model_copy(update={"mode": None})] for name, one in model.controlnets.items()}
    if model.offload:
        _offload(base, device)
    else:
        base.to(device)
    scheduler = dict(base.scheduler.config)
    loaded = LoadedModel(
        base, controlnets, model.controlnets, model.clip_skip, device, scheduler, bool(model.loras), model.scheduler_options
    )
    loaded.cache = model.kernels.cache
    loaded.annotators = Annotators(model.annotators, device, model.threads)
    if model.references and redux is not None:
        loaded.redux = _load_redux(redux, model, dtype, device)
    elif model.references and adapters is not None:
        loaded.references = hold_adapters(base, model, adapters, family.led_first)
        loaded.adapters |= bool(loaded.references.loras)
    if model.refiner:
        loaded.refiner = _refiner(base, model.refiner, dtype, device)
    if model.prior:
        loaded.prior = _prior(model.prior, loaded.family, dtype, device)
    denoisers = (loaded.denoiser, *(one.denoiser for one in (loaded.refiner, loaded.prior) if one))
    steering = [net for kind, net in controlnets.items() if loaded.control_class(kind).part == "controlnet"]
    if model.loras and model.kernels.merge_loras:
        loaded.merged = MergedLoras(part for part in base.components.values() if isinstance(part, torch.nn.Module))
    decoder = getattr(part_of(base, VAES), "decoder", None)
    put_on(model.kernels, (*denoisers, *{id(net): net for net in steering}.values()), device, decoder)
    return loaded


def _loader(base: Any, what: str) -> Callable[..., Any]:
    """Return a pipeline's loader of LoRAs or textual inversions.

    Raises:
        ModelError: The pipeline has none.
    """
    loader: Callable[..., Any] | None = getattr(base, f"load_{what}", None)
    if loader is None:
        key = "loras" if what == "lora_weights" else "textual_inversions"
        raise ModelError(f"model.{key}: diffusers loads none into a {type(base).__name__}; leave them out")
    return loader


def _offload(base: Any, device: torch.device) -> None:
    """Let the blocks of the denoiser and of text encoders be on the device while they compute, by hooks of diffusers'.

    The hooks are part of what the engine then holds, so a batch of joined rows moves each block once.
    """
    modules = {name for name, part in base.components.items() if isinstance(part, torch.nn.Module)}
    stay = sorted(name for name in modules if not name.startswith(QUANTIZED))
    streamed = device.type == "cuda"  # the next block is on its way while one computes
    base.enable_group_offload(
        device, offload_type="block_level", num_blocks_per_group=1, use_stream=streamed, non_blocking=streamed, exclude_modules=stay
    )
    for name in stay:
        getattr(base, name).to(device)


def _refiner(base: Any, weights: RefinerWeights, dtype: torch.dtype, device: torch.device) -> Refiner:
    """Load a refiner, whose VAE and text encoder are the base's, as diffusers documents it."""
    shared = {"vae": base.vae, "text_encoder_2": base.text_encoder_2}
    # Said as None, what a refiner leaves out is not taken for missing.
    left_out = dict.fromkeys(("text_encoder", "tokenizer", "image_encoder", "feature_extractor"))
    pipeline = load_by(of_diffusers("StableDiffusionXLImg2ImgPipeline").from_pretrained, weights, dtype, **shared, **left_out)
    unmark(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(device)
    return Refiner(pipeline, weights.switch)


def _load_redux(prior: str, model: Model, dtype: torch.dtype, device: torch.device) -> ReduxReferences:
    """Load priors without the text encoders, which are the base's."""
    left_out = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    loaded: dict[PartWeights, Any] = {}
    for weights in model.references.values():
        if weights not in loaded:
            loaded[weights] = load_by(of_diffusers(prior).from_pretrained, weights, dtype, **left_out).to(device)
    return ReduxReferences({name: loaded[weights] for name, weights in model.references.items()}, device)


def _prior(weights: Weights, family: Family, dtype: torch.dtype, device: torch.device) -> Prior:
    """Load the prior of a family's decoder."""
    assert family.prior is not None
    pipeline = load_by(of_diffusers(family.prior).from_pretrained, weights, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return Prior(pipeline.to(device), family.negative_too)
