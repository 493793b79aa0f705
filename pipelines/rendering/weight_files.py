"""Reads weights, by the loaders of diffusers and transformers: of folders, of the hub, and of single files."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from promptmill.configs.model import Model
from promptmill.configs.weights import Adapter, PartWeights, Weights
from promptmill.pipelines.models.clip_sources import hub_file, hub_folder
from promptmill.pipelines.models.sources import adapter_file, local_folder, part_place
from promptmill.pipelines.rendering.libraries import of_diffusers
from promptmill.pipelines.rendering.quantised import gguf
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.lean_imports import lean_imports

CONFIG_ENDINGS = (".json", ".txt", ".model", ".jinja")  # of the files that say how a model is made, weights apart


def load_denoiser(model: Model, weights: PartWeights, name: str, kind: str, dtype: torch.dtype, smaller: Mapping[str, Any]) -> Any:
    """Load a denoiser that takes the place of the base's: from a folder in diffusers' format, or from one file of weights.

    What a file does not say, the sizes of its layers, is that of the base's own denoiser.
    """
    place, wanted = _place(weights), of_diffusers(kind)
    if place is None or place.is_dir():
        folder = {"subfolder": weights.subfolder} if weights.subfolder else {}
        return load_by(wanted.from_pretrained, weights, dtype, **folder, **smaller)
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


def load_single_file(model: Model, pipeline: Any, dtype: torch.dtype, parts: Mapping[str, Any]) -> Any:
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


def load_by(loader: Callable[..., Any], weights: Weights, dtype: torch.dtype | None, **options: Any) -> Any:
    """Load weights by a loader of diffusers or transformers, from safetensors alone.

    Raises:
        ModelError: The loader raises anything.
    """
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
