"""Holds a loaded diffusion model: one set of weights in memory, and the pipelines that modes need over it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.configs.step_caches import StepCache
from promptmill.configs.weights import ControlNetWeights
from promptmill.manifests.requests import Request
from promptmill.pipelines.models.controls import ControlClass, control_class_of, control_classes
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.family import DENOISERS, VAES, Family
from promptmill.pipelines.models.pipeline_classes import class_for, plain_mode
from promptmill.pipelines.rendering.annotators import Annotators
from promptmill.pipelines.rendering.libraries import of_diffusers
from promptmill.pipelines.rendering.merging import MergedLoras
from promptmill.pipelines.rendering.priors import Prior
from promptmill.pipelines.rendering.redux import ReduxReferences
from promptmill.pipelines.rendering.references import ReferenceAdapters
from promptmill.pipelines.rendering.refining import Refiner
from promptmill.pipelines.rendering.schedules import scheduler_of
from promptmill.pipelines.rendering.weighted_texts import WeightedTexts
from promptmill.pipelines.work.evaluations import GUIDED_ALWAYS
from promptmill.pipelines.work.lean_imports import lean_imports


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
        annotators: The models that make control maps, or None.
        cache: The steps that run the outer blocks of the denoiser alone; None where all run all blocks.
        long_texts: Whether texts that are longer than a text encoder of CLIP reads are encoded in chunks.
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
    cache: StepCache | None = None
    annotators: Annotators | None = None
    long_texts: bool = False
    _pipelines: dict[tuple[str, tuple[str, ...]], Any] = field(default_factory=dict)
    _schedulers: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # each with the config that it was made of

    @property
    def family(self) -> Family:
        return family_of(type(self.base).__name__)

    @cached_property
    def weighted(self) -> WeightedTexts | None:
        """Return the encoding of prompts with weights; None where the family reads none. A refiner has encoders of its own."""
        kind = self.family.weighting
        if kind is None or self.refiner is not None:
            return None
        return WeightedTexts(self.base, kind, self.clip_skip, self.long_texts, self.device)

    @property
    def denoiser(self) -> torch.nn.Module:
        return part_of(self.base, DENOISERS)

    @property
    def first(self) -> torch.nn.Module | None:
        """Return the denoiser of the prior, be it a model of its own or a part of the base; None where there is none."""
        return self.prior.denoiser if self.prior else self.base.components.get("prior")

    @property
    def vae(self) -> Any:
        """Return the VAE, whatever the family calls it; None where the denoiser makes pixels."""
        return part_of(self.base, VAES)

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
        if self.family.unguided == GUIDED_ALWAYS:
            return True
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


def part_of(pipeline: Any, names: Sequence[str]) -> Any:
    """Return the first of these parts that a pipeline has, by their names; None where it has none."""
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
    unmark(made)
    made.register_to_config(_name_or_path=place)
    made.register_to_config(**{f"_{key.removeprefix('_')}": value for key, value in config.items() if key not in given})
    return made


def unmark(pipeline: Any) -> None:
    """Take the watermark from a pipeline, which SDXL's put into pixels wherever the package invisible-watermark is installed."""
    if hasattr(pipeline, "watermark"):
        pipeline.watermark = None
