"""Loads the adapters for reference images (IP-Adapters) of a config into a pipeline, by diffusers' own loaders."""

from typing import Any

import torch

from promptmill.configs.model import Model
from promptmill.pipelines.models.compatibility import processor_beside
from promptmill.pipelines.models.family import Adapters
from promptmill.pipelines.models.reference_adapters import ENCODERS, adapter_place
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.pictured_faces import let_read_pictures
from promptmill.pipelines.rendering.references import ReferenceAdapters
from promptmill.pipelines.rendering.transformer_references import FluxReferences, SD3References
from promptmill.pipelines.rendering.weight_files import load_by
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.lean_imports import lean_imports

HOLDERS: dict[Adapters, type[ReferenceAdapters]] = {"unet": ReferenceAdapters, "flux": FluxReferences, "sd3": SD3References}


def load_adapters(base: Any, model: Model, kind: Adapters, dtype: torch.dtype) -> None:
    """Load the image encoder into a pipeline, and all adapters into its denoiser.

    Raises:
        ModelError: One cannot be loaded.
    """
    if (encoder := model.reads_references) is not None:
        folder = {"subfolder": encoder.subfolder} if encoder.subfolder else {}
        reader = getattr(transformers, ENCODERS[kind][0])
        base.register_modules(image_encoder=load_by(reader.from_pretrained, encoder, dtype, **folder))
        if kind == "sd3" and base.feature_extractor is None:
            side = base.image_encoder.config.image_size
            said = processor_beside(encoder) or {"size": {"height": side, "width": side}}
            base.register_modules(feature_extractor=transformers.SiglipImageProcessor.from_dict(said))
    places = [adapter_place(weights) for weights in model.references.values()]
    names, folders = [place.name for place in places], [""] * len(places)
    several: dict[str, Any] = {"weight_name": names, "subfolder": folders}
    given: dict[str, Any] = {
        "unet": {**several, "image_encoder_folder": None},
        "flux": {**several, "image_encoder_pretrained_model_name_or_path": None},
        "sd3": {"weight_name": names[0], "subfolder": "", "image_encoder_folder": None},
    }[kind]
    where = f"model.references: {', '.join(model.references)}"
    try:
        with lean_imports():
            base.load_ip_adapter(str(places[0]) if kind == "sd3" else [*map(str, places)], local_files_only=True, **given)
    except Exception as error:  # as `load_by`
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{where}: cannot be loaded: {reason or type(error).__name__}") from error
    denoiser = getattr(base, HOLDERS[kind].part)
    if lacking := sorted(name for name, tensor in denoiser.named_parameters() if tensor.is_meta):
        raise ModelError(f"{where}: cannot be loaded: it lacks {len(lacking)} tensors, as {lacking[0]}")
    if model.pictured_faces:
        let_read_pictures(denoiser, model.references)


def hold_adapters(base: Any, model: Model, kind: Adapters, led_first: bool = False) -> ReferenceAdapters:
    """Return the holder of the adapters that a pipeline has loaded; `led_first` as `ReferenceAdapters` has it."""
    return HOLDERS[kind](base, tuple(model.references), model.faces, led_first)
