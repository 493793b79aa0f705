"""Loads models of transformers that look at pictures, each with its image processor."""

from typing import Any

import torch

from promptmill.configs.weights import PartWeights
from promptmill.pipelines.models.sources import part_place
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.weight_files import load_by
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.lean_imports import lean_imports


def load_with_processor(auto: Any, weights: PartWeights, device: torch.device) -> tuple[Any, Any]:
    """Load a model in fp32, from safetensors alone and without code of its own, and its image processor.

    Args:
        auto: transformers' Auto class of the model.
        weights: A folder, or a repository at its commit.
        device: The device of the model.

    Raises:
        ModelError: One line on what cannot be loaded, or is missing from the file and would be random.
    """
    inside: dict[str, Any] = {"subfolder": weights.subfolder} if weights.subfolder else {}
    more = {"trust_remote_code": False, "output_loading_info": True}
    model, info = load_by(auto.from_pretrained, weights, torch.float32, **inside, **more)
    if lacking := sorted({*map(str, info["missing_keys"]), *map(str, info["mismatched_keys"])}):
        raise ModelError(f"{weights.source}: has no {lacking[0]} that fits, and {len(lacking) - 1:,} more tensors are missing")
    place = part_place(weights.model_copy(update={"subfolder": None}))
    where = {"local_files_only": True} if place is not None else {"revision": weights.revision}
    try:
        with lean_imports():
            processor = transformers.AutoImageProcessor.from_pretrained(
                str(place or weights.source), trust_remote_code=False, **where, **inside
            )
    except Exception as error:  # transformers raises nearly anything; each means that this model cannot be had
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{weights.source}: its image processor cannot be loaded: {reason or type(error).__name__}") from error
    return model.eval().requires_grad_(False).to(device), processor
