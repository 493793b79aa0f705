"""Loads networks that make a picture of a picture (super-resolution, restoration, faces) from safetensors, by spandrel.

spandrel finds the architecture and its sizes by the names and shapes of the tensors, so that a file needs no config.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from promptmill.pipelines.models.clip_sources import one_line
from promptmill.pipelines.models.sources import check_fetched
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.lean_imports import lean_imports

# What a network's purpose is called by spandrel, and by a person.
PURPOSES = {"SR": "enlarges pictures", "Restoration": "restores pictures", "FaceSR": "restores faces", "Inpainting": "inpaints"}
# Draws noise of its own at every call, so that no picture could be made again.
RANDOM = ("AuraSR",)
# By their architecture, the tensors that tell it, and its licence: spandrel has these in a package of their own.
NON_COMMERCIAL = {"CodeFormer": (("position_emb", "idx_pred_layer.1.weight"), "S-Lab License 1.0")}
NUMBERED = 1024  # up to which numbers in names are taken as they are: some are sides of pictures
EXTRA = "codeformer"


def load_descriptor(file: Path, name: str, purposes: tuple[str, ...]) -> Any:
    """Load a network from a safetensors file.

    Args:
        file: The file.
        name: What errors call it.
        purposes: Which of `PURPOSES` will do.

    Returns:
        A `spandrel.ImageModelDescriptor` in fp32, on the CPU and in evaluation mode.

    Raises:
        ModelError: The file is no safetensors file or is damaged, its architecture is not known or has another purpose, or its
            pictures do not have three channels.
    """
    tensors = read_tensors(file, name)
    with lean_imports():
        import spandrel

        registry = spandrel.MAIN_REGISTRY
        if extra := _non_commercial(tensors, name):
            registry = registry.copy()
            registry.add(*extra)
        try:
            loaded: Any = registry.load(tensors)
        except spandrel.UnsupportedModelError:
            some = ", ".join(sorted(tensors)[:3])
            raise ModelError(f"{name}: is of no architecture that spandrel {spandrel.__version__} knows; it holds {some}") from None
        except Exception as error:  # an architecture that is recognised by some tensors raises nearly anything for lack of others
            raise ModelError(f"{name}: cannot be loaded: {one_line(error)}") from error
    kind, purpose = str(loaded.architecture.name), str(loaded.purpose)
    if purpose not in purposes:
        wanted = " or ".join(PURPOSES[one] for one in purposes)
        raise ModelError(f"{name}: a {kind} {PURPOSES[purpose]}, and a network is meant that {wanted}")
    if loaded.architecture.id in RANDOM:
        raise ModelError(f"{name}: a {kind} adds noise of its own to every picture, so that no picture could be made again")
    if (loaded.input_channels, loaded.output_channels) != (3, 3):
        channels = f"{loaded.input_channels} channels in and {loaded.output_channels} out"
        raise ModelError(f"{name}: a {kind} of {channels}, and pictures have 3")
    loaded.model.requires_grad_(False).eval()
    return loaded


def put_on_device(loaded: Any, name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Move a network and cast its weights.

    Raises:
        ModelError: The architecture cannot compute in this dtype.
    """
    import spandrel

    try:
        loaded.to(device, dtype)
    except spandrel.UnsupportedDtypeError:
        others = " or ".join(["float32", *(["bfloat16"] if loaded.supports_bfloat16 else [])])
        kind = loaded.architecture.name
        raise ModelError(f"{name}: a {kind} cannot compute in {str(dtype).removeprefix('torch.')}; use {others}") from None


def read_tensors(file: Path, name: str) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, on the CPU.

    Raises:
        ModelError: The file is not there or no safetensors file, or holds numbers that are not finite, empty tensors, or names with
            numbers that are larger than the file could bear out.
    """
    if not file.name.endswith(".safetensors"):
        advice = "; promptmill convert makes safetensors of it" if file.suffix in (".pth", ".pt", ".ckpt", ".bin") else ""
        raise ModelError(f"{name}: is no .safetensors file, and others are not read: pickles can run code{advice}")
    try:
        check_fetched(file)
        tensors: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name}: is not a safetensors file: {one_line(error)}") from None
    for key, tensor in tensors.items():
        # spandrel takes numbers of layers from names, and widths from shapes: what no tensor bears out is not built.
        numbers = re.findall(r"[0-9]+", key)
        if not tensor.numel() or any(len(one) > 9 or int(one) > NUMBERED + 4 * len(tensors) for one in numbers):
            raise ModelError(f"{name}: {key[:80]} is empty or numbered beyond the file's {len(tensors):,} tensors; is it damaged?")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"{name}: {key[:80]} holds numbers that are not finite; the file may be damaged")
    return tensors


def _non_commercial(tensors: Mapping[str, Tensor], name: str) -> tuple[Any, ...]:
    """Return the architectures that spandrel keeps apart, where the file is of one of them.

    Raises:
        ModelError: The file is of one of them, and they are not installed.
    """
    kind = next((kind for kind, (keys, _) in NON_COMMERCIAL.items() if all(key in tensors for key in keys)), None)
    if kind is None:
        return ()
    try:
        import spandrel_extra_arches
    except ImportError:
        licence = f"whose licence, {NON_COMMERCIAL[kind][1]}, forbids commercial use"
        raise ModelError(f"{name}: is a {kind}, {licence}; where that is no matter: pip install 'promptmill[{EXTRA}]'") from None
    return tuple(spandrel_extra_arches.EXTRA_REGISTRY)
