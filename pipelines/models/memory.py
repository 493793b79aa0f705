"""Computes from files and configs how much of a GPU's memory a model takes at least; free of torch, for the driver's sake."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from promptmill.configs.model import Model
from promptmill.configs.parameters import Defaults
from promptmill.configs.schema import Ranking
from promptmill.configs.weights import SAFETENSORS, OpenClip, Weights
from promptmill.pipelines.models.clip_sources import HF_HUB, LOCAL_DIR, model_config
from promptmill.pipelines.models.sources import find_local, local_folder

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
FEWER = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5}  # bytes a number of a part that is quantised
FLOATS = {"F64", "F32", "F16", "BF16"}
VARIANTS = ("fp16", "bf16", "non_ema", "ema")
DECODED = 4 * 1024 * 1024  # pixels that are decoded at a time, as `rendering.slots` has them
AT_ONCE = 3  # tensors of a block that are there at a time: what comes in, what goes out, and what is added
UNKNOWN_IMAGE = 64 * 2**20  # bytes for an image of a tower whose config says nothing; more than those of ViT-H at 224 pixels
A_TOKEN = 12  # numbers of a transformer's layer that are there at a time, for each token and number of its width


def generator_bytes(model: Model, defaults: Defaults) -> int | None:
    """Return bytes that a generator needs at least: weights in the model's dtype, and the largest tensors of a batch.

    Returns:
        None where the weights are not on this machine, or lie in blocks outside of the GPU (`model.offload`).

    Raises:
        ModelError: A local source is not there.
    """
    if model.offload:
        return None
    files = [*_model_files(model)]
    if not files or any(found is None for _, found in files):
        return None
    weights = 0.0
    for part, found in files:
        each = FEWER.get(model.quantize.get(part, ""), BYTES[model.dtype])
        weights += sum(_bytes_in(file, each) for file in found or ())
    return int(weights + _activations(model, defaults))


def scorer_bytes(ranking: Ranking) -> int | None:
    """Return bytes that a scorer needs: weights of all its models in fp32, and the largest tensors of a batch.

    Returns:
        None where the size of a model is not known on this machine.

    Raises:
        ModelError: A local source is not there.
    """
    known = [_scoring_weights(source) for _, source in ranking.sources().values()]
    if any(size is None for size in known):
        return None
    return sum(size or 0 for size in known) + ranking.batch * _an_image(ranking)


def clip_parameters(config: Mapping[str, Any]) -> int | None:
    """Return the number of parameters of an open_clip model with two plain transformers, by its config; None for any other."""
    vision, text, width = config.get("vision_cfg", {}), config.get("text_cfg", {}), config.get("embed_dim")
    plain = all(isinstance(tower.get(key), int) for tower in (vision, text) for key in ("width", "layers"))
    if not plain or "multimodal_cfg" in config or not isinstance(vision.get("patch_size"), int) or not isinstance(width, int):
        return None
    seen, patch = vision["width"], vision["patch_size"]
    places = (vision.get("image_size", 224) // patch) ** 2 + 1
    image = 3 * patch**2 * seen + seen + places * seen + 4 * seen + seen * width + _layers(vision)
    read = text["width"]
    words = (text.get("vocab_size", 49408) + text.get("context_length", 77)) * read + 2 * read + read * width + _layers(text)
    return int(image + words + 1)


def _layers(tower: Mapping[str, Any]) -> int:
    width, ratio = tower["width"], tower.get("mlp_ratio", 4.0)
    inner = int(width * ratio)
    return int(tower["layers"] * (4 * width**2 + 4 * width + 2 * inner * width + inner + width + 4 * width))


def _an_image(ranking: Ranking) -> int:
    """Return bytes of a layer of the image tower for one image; for a tower without patches, those of its widest layer."""
    vision = model_config(ranking).get("vision_cfg", {})
    side, width, patch = (vision.get(name) for name in ("image_size", "width", "patch_size"))
    if not isinstance(side, int) or not isinstance(width, int):
        return UNKNOWN_IMAGE
    if not isinstance(patch, int) or not isinstance(vision.get("layers"), int):
        return 4 * AT_ONCE * side**2 * width
    tokens = (side // patch) ** 2 + 1
    heads = width // vision.get("head_width", 64)
    return 4 * (A_TOKEN * tokens * width + heads * tokens**2)


def _scoring_weights(source: OpenClip | Weights) -> int | None:
    if isinstance(source, OpenClip):
        if source.model.startswith(LOCAL_DIR):
            return int(sum(_bytes_in(file, 4) for file in find_local(source.model.removeprefix(LOCAL_DIR)).glob(f"*{SAFETENSORS}")))
        if source.model.startswith(HF_HUB):
            return None
        parameters = clip_parameters(model_config(source))
        return None if parameters is None else 4 * parameters
    place = local_folder(source.source)
    if place is None:
        return None
    files = [place] if place.is_file() else place.glob(f"*{SAFETENSORS}")
    return int(sum(_bytes_in(file, 4) for file in files))


def _model_files(model: Model) -> Iterator[tuple[str, list[Path] | None]]:
    """Yield the parts of a model by name, with their files; None in place of files that are not on this machine."""
    replaced = {"unet", "transformer"} if model.denoiser else set()
    replaced |= {"vae"} if model.vae else set()
    replaced |= {"safety_checker", "feature_extractor"}
    for where, (_, weights) in model.weights().items():
        place = _place(weights)
        if where == "model.base_config":
            continue  # only its configs are read
        if place is None:
            yield where, None
        elif place.is_file():
            yield where, [place]
        elif (place / "model_index.json").is_file():
            index = json.loads((place / "model_index.json").read_text())
            for name, value in index.items():
                if isinstance(value, list) and value[0] and name not in replaced and (place / name).is_dir():
                    yield name, _chosen(place / name, weights.variant)
        else:
            yield where, _chosen(place, weights.variant)


def _place(weights: Weights) -> Path | None:
    """Return the folder or file of some weights on this machine: local, or in the hub's cache."""
    inside = "/".join(filter(None, (getattr(weights, "subfolder", None), getattr(weights, "weight_name", None))))
    place = local_folder(weights.source)
    if place is None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(weights.source, "model_index.json", revision=weights.revision)
        if not isinstance(found, str) or inside:
            return None
        place = Path(found).parent
    return place / inside if inside else place


def _chosen(folder: Path, variant: str | None) -> list[Path] | None:
    """Return the files of weights that diffusers reads of a folder; None where a hub's folder has none of them."""
    files = sorted(folder.glob(f"*{SAFETENSORS}"))
    of_variant = [file for file in files if variant and f".{variant}." in file.name.replace("-", ".")]
    plain = [file for file in files if not any(f".{one}" in file.name for one in VARIANTS)]
    has_config = (folder / "config.json").is_file()
    return (of_variant or plain or files) or (None if has_config else [])


def _bytes_in(file: Path, each: float) -> float:
    """Return bytes of a safetensors file's numbers, of which floats take `each` in memory; of another file, its own bytes."""
    if not file.name.endswith(SAFETENSORS):
        return file.stat().st_size  # GGUF stays as small as the file is
    with safe_open(file, "np") as opened:
        slices = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118  no dict
        return sum(math.prod(one.get_shape()) * (each if one.get_dtype() in FLOATS else 1) for one in slices)


def _activations(model: Model, defaults: Defaults) -> float:
    """Return bytes of the largest tensors of a batch of the default size: those of the denoiser, or of the decoder after it."""
    place = _place(model.layout)
    if place is None or not place.is_dir():
        return 0.0
    files = [place / name / "config.json" for name in ("unet", "transformer", "vae")]
    unet, transformer, vae = (json.loads(file.read_text()) if file.is_file() else {} for file in files)
    widths, each = _widths(vae), BYTES[model.dtype]
    pixels = defaults.width * defaults.height
    latents = pixels / 4 ** (len(widths) - 1)
    decoding = min(DECODED, model.batch * pixels) * widths[0] * AT_ONCE * each
    by_unet = model.batch * latents * _widths(unet)[0] * AT_ONCE * each
    heads, width = transformer.get("num_attention_heads"), transformer.get("attention_head_dim")
    patch = transformer.get("patch_size") or 1
    by_layer = 0.0
    if isinstance(heads, int) and isinstance(width, int) and isinstance(patch, int):
        by_layer = model.batch * latents / patch**2 * heads * width * A_TOKEN * each
    return max(decoding, by_unet, by_layer)


def _widths(config: Mapping[str, Any]) -> list[int]:
    widths = config.get("block_out_channels")
    return widths if isinstance(widths, list) and widths and all(isinstance(one, int) for one in widths) else [0]
