"""Loads a diffusion model once, by diffusers' own loaders, so that one set of weights in memory serves every mode."""

import copy
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from promptmill.configs.model import Model
from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.configs.weights import Adapter, ControlNetWeights, PartWeights, RefinerWeights, Weights
from promptmill.manifests.requests import Request
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.clip_sources import hub_file, hub_folder
from promptmill.pipelines.models.compatibility import CONTROLNET, QUANTIZED, VAE, class_named, denoiser_of
from promptmill.pipelines.models.controls import ControlClass, control_class_of, control_classes
from promptmill.pipelines.models.families import DENOISERS, VAES, Family, family_of
from promptmill.pipelines.models.pipeline_classes import class_for, plain_mode
from promptmill.pipelines.models.reference_adapters import adapter_place
from promptmill.pipelines.models.sources import adapter_file, local_folder, part_place
from promptmill.pipelines.rendering.kernels import put_on
from promptmill.pipelines.rendering.libraries import diffusers, of_diffusers, put_back, transformers
from promptmill.pipelines.rendering.merging import MergedLoras
from promptmill.pipelines.rendering.modules import kept_in_fp32
from promptmill.pipelines.rendering.priors import Prior
from promptmill.pipelines.rendering.quantised import gguf, quantisation, quantisation_of_part
from promptmill.pipelines.rendering.redux import ReduxReferences
from promptmill.pipelines.rendering.references import ReferenceAdapters
from promptmill.pipelines.rendering.refining import Refiner
from promptmill.pipelines.rendering.schedules import scheduler_of
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.lean_imports import lean_imports

CONFIG_ENDINGS = (".json", ".txt", ".model", ".jinja")  # of the files that say how a model is made, weights apart


@dataclass
class LoadedModel:
    """Holds weights in memory, and the pipelines made over these weights as modes need them.

    Attributes:
        base: The pipeline as loaded.
        controlnets: ControlNets by the type that requests name; types of the same weights share one.
        controls: How the config declares each of these types.
        clip_skip: Layers of the text encoder left out at its end.
        device: The device of all weights.
        adapters: Whether LoRAs are loaded.
        merged: The LoRAs where they are merged into the weights; None where they compute beside them.
        scheduler_options: The config's options of schedulers.
        references: The adapters for reference images, or None.
        redux: The priors for reference images, or None.
        refiner: The model that takes the last steps of each image, or None.
        prior: The model that makes the embeddings which the base decodes, or None.
    """

    base: Any
    controlnets: dict[str, Any]
    controls: Mapping[str, ControlNetWeights]
    clip_skip: int
    device: torch.device
    _scheduler_config: dict[str, Any]
    adapters: bool = False
    scheduler_options: SchedulerOptions = field(default_factory=SchedulerOptions)
    references: ReferenceAdapters | None = None
    redux: ReduxReferences | None = None
    merged: MergedLoras | None = None
    refiner: Refiner | None = None
    prior: Prior | None = None
    _pipelines: dict[tuple[str, tuple[str, ...]], Any] = field(default_factory=dict)
    _schedulers: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # each with the config that it was made of

    @property
    def family(self) -> Family:
        return family_of(type(self.base).__name__)

    @property
    def denoiser(self) -> torch.nn.Module:
        return _part(self.base, DENOISERS)

    @property
    def first(self) -> torch.nn.Module | None:
        """Return the denoiser of the prior, be it a model of its own or a part of the base; None where there is none."""
        return self.prior.denoiser if self.prior else self.base.components.get("prior")

    @property
    def vae(self) -> Any:
        """Return the VAE, whatever the family calls it; None where the denoiser makes pixels."""
        return _part(self.base, VAES)

    @property
    def pipelines(self) -> tuple[Any, ...]:
        """Return the pipelines that read texts: the base, and its prior before it."""
        return (self.prior.pipeline, self.base) if self.prior else (self.base,)

    @property
    def parts(self) -> dict[str, Any]:
        """Return the components of the base by their names, and those of its prior by prior.NAME."""
        others = {f"prior.{name}": part for name, part in self.prior.pipeline.components.items()} if self.prior else {}
        return {**self.base.components, **others}

    @property
    def encoded(self) -> Callable[[Image.Image], torch.Tensor] | None:
        """Return a function that makes of a reference image what the image encoder takes; None where the model reads no images."""
        reader = self.references or self.redux
        return reader.pixels if reader else None

    def guided(self, request: Request) -> bool:
        """Return whether a request's candidates are rendered with guidance, as diffusers decides it."""
        # A model distilled from guidance takes the scale as an input instead.
        distilled = self.family.projected and getattr(self.denoiser.config, "time_cond_proj_dim", None) is not None
        held = request.image_guidance_scale is None or request.image_guidance_scale >= 1.0
        return request.guidance_scale > self.family.unguided and not distilled and held

    def pipeline(self, mode: str, controls: Sequence[str], scheduler: str) -> Any:
        """Return a diffusers pipeline for a mode and its kinds of control, sharing the weights, with a scheduler of its own.

        A pipeline keeps its scheduler and some of its arguments on itself, so each call has one of its own.
        """
        kinds = tuple(controls)
        key = (mode, kinds)
        if key not in self._pipelines:
            made = self._with_controls(mode, kinds) if kinds else made_of(self.base, class_for(type(self.base).__name__, mode), {})
            made.set_progress_bar_config(disable=True)
            self._pipelines[key] = made
        made = copy.copy(self._pipelines[key])
        made.scheduler = self.scheduler(scheduler)
        if (second := made.components.get("prior_scheduler")) is not None:
            made.prior_scheduler = type(second).from_config(second.config)
        return made

    def control_class(self, kind: str) -> ControlClass:
        """Return the class of a type's control model, as the table of classes has it."""
        net = self.controlnets[kind]
        return control_classes(type(self.base).__name__)[control_class_of(type(net).__name__, net.config)]

    def _with_controls(self, mode: str, kinds: Sequence[str]) -> Any:
        how, nets = self.control_class(kinds[0]), [self.controlnets[kind] for kind in kinds]
        # One ControlNet of several modes sees all its control images at once; several are added up.
        one = len(nets) == 1 or (how.together and all(net is nets[0] for net in nets))
        # The pipelines join ControlNets themselves; adapters come joined.
        part = nets[0] if one else of_diffusers("MultiAdapter")(nets) if how.part == "adapter" else nets
        return made_of(self.base, how.pipelines[plain_mode(mode)], {how.part: part})

    def scheduler(self, name: str) -> Any:
        """Return a fresh scheduler by its short name.

        A scheduler is made once and copied from then on: some take a fifth of a second to make.
        """
        if name not in self._schedulers or self._schedulers[name][0] is not self._scheduler_config:
            self._schedulers[name] = self._scheduler_config, self._made_scheduler(name)
        return copy.deepcopy(self._schedulers[name][1])

    def _made_scheduler(self, name: str) -> Any:
        return scheduler_of(name, self._scheduler_config, self.scheduler_options)

    def adapted_by(self, request: Request) -> tuple[tuple[str, float], ...]:
        """Return the LoRAs that a request switches on, by name and scale: its own, and those of its adapters of faces."""
        of_faces = self.references.loras if self.references else {}
        types = dict.fromkeys(one.type for one in request.references)
        own = ((lora.name, lora.scale) for lora in request.loras)
        return (*own, *((of_faces[name], 1.0) for name in types if name in of_faces))

    def adapt(self, loras: Sequence[tuple[str, float]]) -> None:
        """Switch the given LoRAs on, by name and scale, and all others off."""
        if not self.adapters:
            return
        if self.merged is not None:
            self.merged.switch(loras)
        elif loras:
            self.base.enable_lora()
            self.base.set_adapters([name for name, _ in loras], [scale for _, scale in loras])
        else:
            self.base.disable_lora()


def _part(pipeline: Any, names: Sequence[str]) -> Any:
    return next((part for name in names if (part := pipeline.components.get(name)) is not None), None)


def made_of(base: Any, name: str, parts: Mapping[str, Any]) -> Any:
    """Make a pipeline of a class of the components of another, as `from_pipe` of diffusers' Auto classes does.

    Importing those classes imports the code of every family, which takes longer than everything else that a generator imports. A
    ControlNet class's own `from_pipe` will not do: it casts shared bf16 weights to fp32.

    Args:
        base: The pipeline as loaded.
        name: The class of the new pipeline.
        parts: Components beside those of `base`, by name.
    """
    kind = of_diffusers(name)
    wanted, optional = kind._get_signature_keys(kind)
    config = dict(base.config)
    place = config.pop("_name_or_path", None)
    given = {key: part for key, part in base.components.items() if key in wanted} | dict(parts)
    given |= {key: value for key, value in config.items() if key in optional}
    # diffusers keeps options that the class of `base` did not take under private names.
    given |= {key[1:]: config.pop(key) for key in [*config] if key.startswith("_") and key[1:] in optional}
    with lean_imports():
        made = kind(**given)
    _unmark(made)
    made.register_to_config(_name_or_path=place)
    made.register_to_config(**{f"_{key.removeprefix('_')}": value for key, value in config.items() if key not in given})
    return made


def _unmark(pipeline: Any) -> None:
    """Take the watermark from a pipeline, which SDXL's put into pixels wherever the package invisible-watermark is installed."""
    if hasattr(pipeline, "watermark"):
        pipeline.watermark = None


def device_here() -> torch.device:
    """Return the first GPU, or the CPU, set up so that no kernel is chosen by timing, which would differ between processes."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # cuBLAS is reproducible only with a workspace of fixed size; CUDA reads the variable as it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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
        parts["vae"] = _load(of_diffusers(kind).from_pretrained, model.vae, dtype)
    if model.denoiser:
        name, kind = denoiser_of(model)
        smaller = quantisation_of_part(model.quantize.get(name), name, dtype, device)
        parts[name] = _denoiser(model, model.denoiser, name, kind, dtype, smaller)
    if facts.safety_checker and not model.safety_checker:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    if (moved := family_of(facts.pipeline).moved) is not None:
        put_back(moved)
    # From text to images, but for what cannot: an inpainting model (more channels in than latents have), one that edits images.
    pipeline = of_diffusers(class_for(facts.pipeline, facts.modes[0]))
    base = (
        _single_file(model, pipeline, dtype, parts)
        if model.single_file
        else _load(
            pipeline.from_pretrained,
            model.layout,
            dtype,
            **parts,
            **quantisation({part: kind for part, kind in model.quantize.items() if part not in parts}, dtype, device),
        )
    )
    if model.vae_tiling:
        vae = _part(base, VAES)
        if not hasattr(vae, "enable_tiling"):
            raise ModelError(f"model.vae_tiling: {type(vae).__name__} has no tiles; set it to false")
        vae.enable_tiling()
    if dtype == torch.float16 and (vae := _part(base, VAES)) is not None and getattr(vae.config, "force_upcast", False):
        kept_in_fp32(vae)
    _unmark(base)
    base.set_progress_bar_config(disable=True)
    encoder = getattr(base, "text_encoder", None)
    if model.clip_skip and encoder is not None and not hasattr(encoder, "text_model"):
        # diffusers 0.42 reaches for the layer norm through an attribute that transformers 5 took away; not a child, which would
        # be the module itself, so past torch's own __setattr__.
        object.__setattr__(encoder, "text_model", encoder)
    for inversion in model.textual_inversions:
        _load(base.load_textual_inversion, inversion, None, token=inversion.token)
    for lora in model.loras:
        _load(base.load_lora_weights, lora, None, adapter_name=lora.name)
    prior = family_of(facts.pipeline).redux
    if model.references and prior is None:
        _load_adapters(base, model, dtype)
    nets: dict[ControlNetWeights, Any] = {}
    for one in model.controlnets.values():
        if (weights := one.model_copy(update={"mode": None})) not in nets:
            nets[weights] = _load(of_diffusers(class_named(one, CONTROLNET)).from_pretrained, one, dtype).to(device)
    controlnets = {name: nets[one.model_copy(update={"mode": None})] for name, one in model.controlnets.items()}
    if model.offload:
        _offload(base, device)
    else:
        base.to(device)
    scheduler = dict(base.scheduler.config)
    loaded = LoadedModel(
        base, controlnets, model.controlnets, model.clip_skip, device, scheduler, bool(model.loras), model.scheduler_options
    )
    if model.references and prior is not None:
        loaded.redux = _load_redux(prior, model, dtype, device)
    elif model.references:
        loaded.references = ReferenceAdapters(base, tuple(model.references), model.faces)
        loaded.adapters |= bool(loaded.references.loras)
    if model.refiner:
        loaded.refiner = _refiner(base, model.refiner, dtype, device)
    if model.prior:
        loaded.prior = _prior(model.prior, loaded.family, dtype, device)
    denoisers = (loaded.denoiser, *(one.denoiser for one in (loaded.refiner, loaded.prior) if one))
    steering = [net for kind, net in controlnets.items() if loaded.control_class(kind).part == "controlnet"]
    if model.loras and model.kernels.merge_loras:
        loaded.merged = MergedLoras(part for part in base.components.values() if isinstance(part, torch.nn.Module))
    decoder = getattr(_part(base, VAES), "decoder", None)
    put_on(model.kernels, (*denoisers, *{id(net): net for net in steering}.values()), device, decoder)
    return loaded


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
    pipeline = _load(of_diffusers("StableDiffusionXLImg2ImgPipeline").from_pretrained, weights, dtype, **shared, **left_out)
    _unmark(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(device)
    return Refiner(pipeline, weights.switch)


def _load_redux(prior: str, model: Model, dtype: torch.dtype, device: torch.device) -> ReduxReferences:
    """Load priors without the text encoders, which are the base's."""
    left_out = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    loaded: dict[PartWeights, Any] = {}
    for weights in model.references.values():
        if weights not in loaded:
            loaded[weights] = _load(of_diffusers(prior).from_pretrained, weights, dtype, **left_out).to(device)
    return ReduxReferences({name: loaded[weights] for name, weights in model.references.items()}, device)


def _prior(weights: Weights, family: Family, dtype: torch.dtype, device: torch.device) -> Prior:
    """Load the prior of a family's decoder."""
    assert family.prior is not None
    pipeline = _load(of_diffusers(family.prior).from_pretrained, weights, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return Prior(pipeline.to(device), family.negative_too)


def _load_adapters(base: Any, model: Model, dtype: torch.dtype) -> None:
    """Load the image encoder, and all adapters into the UNet."""
    if (encoder := model.reads_references) is not None:
        folder = {"subfolder": encoder.subfolder} if encoder.subfolder else {}
        read = _load(transformers.CLIPVisionModelWithProjection.from_pretrained, encoder, dtype, **folder)
        base.register_modules(image_encoder=read)
    places = [adapter_place(weights) for weights in model.references.values()]
    try:
        with lean_imports():
            base.load_ip_adapter(
                [str(place) for place in places],
                subfolder=[""] * len(places),
                weight_name=[place.name for place in places],
                image_encoder_folder=None,
                local_files_only=True,
            )
    except Exception as error:  # as `_load`
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model.references: {', '.join(model.references)}: cannot be loaded: {reason}") from error


def _denoiser(model: Model, weights: PartWeights, name: str, kind: str, dtype: torch.dtype, smaller: Mapping[str, Any]) -> Any:
    """Load a denoiser that takes the place of the base's: from a folder in diffusers' format, or from one file of weights.

    What a file does not say, the sizes of its layers, is that of the base's own denoiser.
    """
    place, wanted = _place(weights), of_diffusers(kind)
    if place is None or place.is_dir():
        folder = {"subfolder": weights.subfolder} if weights.subfolder else {}
        return _load(wanted.from_pretrained, weights, dtype, **folder, **smaller)
    if not hasattr(wanted, "from_single_file"):
        raise ModelError(f"model.denoiser: diffusers reads no {kind} from a single file; give a folder in diffusers' format")
    base = local_folder(model.layout.source)
    config = {"config": str(base or model.layout.source), "config_revision": model.layout.revision, "subfolder": name}
    try:
        with lean_imports():
            made = wanted.from_single_file(
                str(place), local_files_only=base is not None, dtype=dtype, **config, **smaller, **gguf(place, dtype)
            )
    except Exception as error:  # as `_load`
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model.denoiser: {weights.source}: cannot be loaded: {reason or type(error).__name__}") from error
    _settle(made, f"model.denoiser: {weights.source}: it")
    return made


def _single_file(model: Model, pipeline: Any, dtype: torch.dtype, parts: Mapping[str, Any]) -> Any:
    """Load a pipeline from one file in its authors' layout, with the configs, tokenizers and scheduler of another model.

    Raises:
        ModelError: diffusers reads no pipeline of this family from one file; or the file is of another layout or lacks a part.
    """
    assert model.single_file is not None
    if not hasattr(pipeline, "from_single_file"):
        raise ModelError(
            f"model.base: diffusers reads no {pipeline.__name__} from a single file; give a folder in diffusers' format"
        )
    place = str(_place(model.single_file))
    try:
        # Of the layout diffusers sees the configs alone: of a part that the file lacks it would load whatever weights lie there,
        # pickles too.
        with lean_imports(), tempfile.TemporaryDirectory() as configs:
            _link_configs(model.layout, Path(configs))
            made = pipeline.from_single_file(place, config=configs, local_files_only=True, dtype=dtype, **parts)
    except ModelError:
        raise
    except Exception as error:  # as `_load`
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model.base: {model.single_file.weight_name or model.base}: cannot be loaded: {reason}") from error
    for name, part in made.components.items():
        if isinstance(part, torch.nn.Module):
            _settle(part, f"model.base: {model.single_file.weight_name or model.base}: its {name}")
    return made


def _link_configs(layout: Weights, folder: Path) -> None:
    """Put links to the configs and tokenizers of a model into a folder, and to none of its weights."""
    there = local_folder(layout.source) or hub_folder(layout.source, layout.revision, [f"*{ending}" for ending in CONFIG_ENDINGS])
    for file in there.rglob("*"):
        if file.is_file() and file.name.endswith(CONFIG_ENDINGS) and not file.name.endswith(".index.json"):
            place = folder / file.relative_to(there)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file.resolve())


def _settle(module: Any, what: str) -> None:
    """Make a module that diffusers has read from a single file what `from_pretrained` would make of a folder.

    Raises:
        ModelError: The module has a tensor that the file did not give, of which diffusers warns at most.
    """
    module.eval()  # diffusers leaves a T5 of a single file with its dropout on
    if any(parameter.is_meta for parameter in module.parameters()) and hasattr(module, "tie_weights"):
        module.tie_weights()  # what is one tensor under two names stands in a file once
    lacking = sorted(name for name, tensor in module.state_dict().items() if tensor.is_meta)
    if lacking:
        more = f" and {len(lacking) - 1:,} more" if lacking[1:] else ""
        raise ModelError(f"{what} lacks {lacking[0]}{more}; is the file of another family, or not whole?")
    for parameter in [one for one in module.parameters() if type(one) is torch.nn.Parameter]:
        # Where tensors begin in the file decides which kernels a CPU takes, and so the last bits: in memory of their own all begin
        # alike.
        parameter.data = parameter.data.clone()


def _place(weights: PartWeights) -> Path | None:
    """Return the place of a part on this machine, its one file fetched from the hub; None for a folder on the hub."""
    place = part_place(weights)
    if place is None and weights.weight_name:
        return hub_file(weights.source, "/".join(filter(None, (weights.subfolder, weights.weight_name))), weights.revision)
    return place


def _load(loader: Callable[..., Any], weights: Weights, dtype: torch.dtype | None, **options: Any) -> Any:
    # A LoRA or an inversion is given as a file: of a folder with several files diffusers takes whichever the disk lists first.
    place = adapter_file(weights) if isinstance(weights, Adapter) else local_folder(weights.source)
    if place is not None:
        options["local_files_only"] = True
    elif isinstance(weights, Adapter):
        options["weight_name"] = weights.file
    if weights.variant:
        options["variant"] = weights.variant
    if dtype is not None:
        options["dtype"] = dtype
    if weights.revision:
        options["revision"] = weights.revision
    try:
        with lean_imports():
            return loader(str(place or weights.source), use_safetensors=True, **options)
    except Exception as error:  # the loaders raise nearly anything; each means that this model cannot be had
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{weights.source}: cannot be loaded: {reason or type(error).__name__}") from error
