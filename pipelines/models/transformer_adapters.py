"""Checks reference adapters (IP-Adapters) of Flux and of Stable Diffusion 3, from config files and weight headers alone."""

from collections.abc import Mapping
from typing import Any

from promptmill.configs.model import Model
from promptmill.configs.weights import SAFETENSORS, ReferenceWeights
from promptmill.pipelines.models.reference_adapters import adapter_place, check_encoder, shapes_of
from promptmill.pipelines.work.errors import ModelError

Shapes = Mapping[str, list[int]]
# What the names of Flux's adapters begin with, of projections and of attention, as XLabs and diffusers write them; diffusers reads
# both.
PROJECTIONS, ATTENTION = ("ip_adapter_proj_model.", "image_proj."), ("double_blocks.", "ip_adapter.")
KEYS = ("processor.ip_adapter_double_stream_k_proj", "to_k_ip")
DEPTH = 4  # layers of the resampler of Stable Diffusion 3's adapters, whatever the file has


def check_pictured(model: Model) -> None:
    """Check that a transformer's references are pictures, and of one way: files of IP-Adapters or folders of Redux.

    Raises:
        ModelError: They are not.
    """
    for name, weights in model.references.items():
        where = f"model.references.{name}"
        if weights.kind != "image":
            said = f"transformers read pictures, no embeddings of faces; set {where}.kind to image"
            raise ModelError(f"{where}: {weights.source}: {said}")
        if not model.redux and not _is_file(weights):
            said = "needs a weight_name, as the IP-Adapters beside it; a folder is a Redux, which does not go with them"
            raise ModelError(f"{where}: {weights.source}: {said}")


def check_flux_adapters(
    model: Model, denoiser: Mapping[str, Any], encoder: Mapping[str, Any] | None, processor: Mapping[str, Any] | None
) -> None:
    """Compare IP-Adapters with the transformer of a Flux and with the image encoder.

    Args:
        model: The config's model, whose references are files.
        denoiser: The transformer's config.
        encoder, processor: As for `check_encoder`.

    Raises:
        ModelError: An adapter is none, or is for another base or another image encoder.
    """
    seen = check_encoder(model, "flux", encoder, processor)
    width, layers = denoiser.get("joint_attention_dim", 4096), denoiser.get("num_layers", 19)
    for name, weights in model.references.items():
        shapes, said = _read(name, weights)
        read = _first(shapes, PROJECTIONS, ("proj.weight",))
        keys = {place: shape for place, shape in _places(shapes, ATTENTION).items() if place[1] in KEYS}
        if read is None or not keys:
            raise ModelError(f"{said} is no IP-Adapter of Flux: it has no tensors named {PROJECTIONS[0]}… and {ATTENTION[0]}…")
        _compare(said, keys, layers, [_inner(denoiser, 24, 128), width])
        if read[0] not in (4 * width, 16 * width):
            raise ModelError(f"{said} is for another base model: it makes {read[0]} values of an image, the base takes {4 * width}")
        if read[1] != (have := seen.get("projection_dim")):
            raise ModelError(f"{said} reads {read[1]} values of an image, and the image encoder gives {have}; is it another's?")


def check_sd3_adapter(
    model: Model, denoiser: Mapping[str, Any], encoder: Mapping[str, Any] | None, processor: Mapping[str, Any] | None
) -> None:
    """Compare the one IP-Adapter of a config with the transformer of a Stable Diffusion 3 and with the image encoder.

    Args:
        model, denoiser, encoder, processor: As for `check_flux_adapters`.

    Raises:
        ModelError: There are several; or the adapter is none, or is for another base or another image encoder.
    """
    if len(model.references) > 1:
        raise ModelError(f"model.references: {', '.join(model.references)}: Stable Diffusion 3 takes one IP-Adapter; leave one")
    ((name, weights),) = model.references.items()
    if not _is_file(weights):
        raise ModelError(f"model.references.{name}: needs a weight_name, the adapter's {SAFETENSORS} file in {weights.source}")
    # Processors of this kind crop nothing.
    seen = check_encoder(model, "sd3", encoder, {"do_center_crop": False, **processor} if processor else None)
    shapes, said = _read(name, weights)
    resampler = [shapes.get(f"image_proj.{one}") for one in ("latents", "time_embedding.linear_1.weight", "proj_in.weight")]
    keys = {place: shape for place, shape in _places(shapes, ("ip_adapter.",)).items() if place[1] == "to_k_ip"}
    if None in resampler or not keys or not any(one.startswith(f"image_proj.layers.{DEPTH - 1}.") for one in shapes):
        lacks = f"it has no tensors named image_proj.time_embedding.…, image_proj.layers.{DEPTH - 1}.… and ip_adapter.…"
        raise ModelError(f"{said} is no IP-Adapter of Stable Diffusion 3: {lacks}")
    inner = _inner(denoiser, 18, 64)
    _compare(said, keys, denoiser.get("num_layers", 18) + len(denoiser.get("dual_attention_layers") or ()), [inner, inner])
    if (read := shapes["image_proj.proj_in.weight"][1]) != (have := seen.get("hidden_size")):
        raise ModelError(f"{said} reads {read} values of an image, and the image encoder gives {have}; is it another's?")


def _is_file(weights: ReferenceWeights) -> bool:
    return bool(weights.weight_name) or weights.source.endswith(SAFETENSORS)


def _read(name: str, weights: ReferenceWeights) -> tuple[Shapes, str]:
    """Return the shapes of an adapter's tensors, and what errors call the adapter."""
    return shapes_of(adapter_place(weights)), f"model.references.{name}: {weights.weight_name or weights.source}"


def _inner(denoiser: Mapping[str, Any], heads: int, width: int) -> int:
    """Return the width of a transformer, by its config or, where that says nothing, by diffusers' defaults."""
    return int(denoiser.get("num_attention_heads", heads) * denoiser.get("attention_head_dim", width))


def _first(shapes: Shapes, begins: tuple[str, ...], names: tuple[str, ...]) -> list[int] | None:
    return next((shapes[whole] for begin in begins for name in names if (whole := f"{begin}{name}") in shapes), None)


def _places(shapes: Shapes, begins: tuple[str, ...]) -> dict[tuple[str, str], list[int]]:
    """Return the shapes of the weights of numbered layers, by the number and what the layer is called behind the number."""
    found = {}
    for name, shape in shapes.items():
        for begin in begins:
            if name.startswith(begin) and name.endswith(".weight"):
                number, _, rest = name.removeprefix(begin).partition(".")
                found[number, rest.removesuffix(".weight")] = shape
    return found


def _compare(said: str, keys: Mapping[tuple[str, str], list[int]], layers: int, wanted: list[int]) -> None:
    """Compare the layers for keys that an adapter has with those that a transformer wants, numbered from 0 on."""
    if (shape := next(iter(keys.values()))) != wanted:
        its, base = (f"{one[0]} x {one[1]}" for one in (shape, wanted))
        raise ModelError(f"{said} is for another base model: its keys are of {its} values, the base's of {base}")
    if {number for number, _ in keys} != {str(number) for number in range(layers)}:
        raise ModelError(f"{said} is for another base model: it has {len(keys)} layers of attention, the base has {layers}")
