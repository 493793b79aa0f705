"""Loads models of transformers, each with its image processor, its tokenizer, or its processor of both."""

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
    """Load a model in fp32, and its image processor, as `load_model` and `load_beside` do."""
    model = load_model(auto, weights, torch.float32, device, task)
    return model, load_beside(transformers.AutoImageProcessor, weights, "image processor")


def load_model(auto: Any, weights: Weights, dtype: torch.dtype, device: torch.device, task: str) -> Any:
    """Load a model from safetensors alone and without code of its own.

    Args:
        auto: transformers' Auto class of the model.
        weights: A folder, or a repository at its commit.
        dtype: Of the weights.
        device: The device of the model.
        task: What the model is for, in words.

    Raises:
        ModelError: One line on what cannot be loaded, or is missing from the file and would be random.
    """
    transformers.utils.logging.disable_progress_bar()
    model, info = load_by(auto.from_pretrained, weights, dtype, output_loading_info=True, **_options(weights))
    # transformers fills in random numbers, and warns.
    if lacking := sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])}):
        more = f" and {len(lacking) - 1:,} more" if lacking[1:] else ""
        raise ModelError(f"{weights.source}: lacks {lacking[0]}{more}; is it whole, and a model for {task}?")
    return model.eval().requires_grad_(False).to(device)


def load_beside(auto: Any, weights: Weights, what: str) -> Any:
    """Load the tokenizer or the processor of a model, without code of its own.

    Args:
        auto: transformers' Auto class for it.
        weights: A folder, or a repository at its commit.
        what: What it is called in words.

    Raises:
        ModelError: One line on why it cannot be loaded.
    """
    place = local_folder(weights.source)
    pinned = {"local_files_only": True} if place else {"revision": weights.revision}
    try:
        with lean_imports():
            return auto.from_pretrained(str(place or weights.source), **pinned, **_options(weights))
    except Exception as error:  # the loaders raise nearly anything
        raise ModelError(f"{weights.source}: has no {what} that can be loaded: {one_line(error)}") from error


def _options(weights: Weights) -> dict[str, Any]:
    inside = {"subfolder": weights.subfolder} if isinstance(weights, PartWeights) and weights.subfolder else {}
    return {"trust_remote_code": False, **inside}
