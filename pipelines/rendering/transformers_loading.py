"""Loads models of transformers that look at pictures, each with its image processor."""

from typing import Any

import torch

from promptmill.configs.weights import PartWeights, Weights
from promptmill.pipelines.models.clip_sources import one_line
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.weight_files import load_by
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.lean_imports import lean_imports


def load_with_processor(auto: Any, weights: Weights, device: torch.device, task: str) -> tuple[Any, Any]:
    """Load a model in fp32, from safetensors alone and without code of its own, and its image processor.

    Args:
        auto: transformers' Auto class of the model.
        weights: A folder, or a repository at its commit.
        device: The device of the model.
        task: What the model is for, in words.

    Raises:
        ModelError: One line on what cannot be loaded, or is missing from the file and would be random.
    """
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"trust_remote_code": False}
    if isinstance(weights, PartWeights) and weights.subfolder:
        options["subfolder"] = weights.subfolder
    model, info = load_by(auto.from_pretrained, weights, torch.float32, output_loading_info=True, **options)
    # transformers fills in random numbers, and warns.
    if lacking := sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])}):
        more = f" and {len(lacking) - 1:,} more" if lacking[1:] else ""
        raise ModelError(f"{weights.source}: lacks {lacking[0]}{more}; is it whole, and a model for {task}?")
    place = local_folder(weights.source)
    pinned = {"local_files_only": True} if place else {"revision": weights.revision}
    try:
        with lean_imports():
            processor = transformers.AutoImageProcessor.from_pretrained(str(place or weights.source), **pinned, **options)
    except Exception as error:  # the loaders raise nearly anything
        raise ModelError(f"{weights.source}: has no image processor that can be loaded: {one_line(error)}") from error
    return model.eval().requires_grad_(False).to(device), processor
