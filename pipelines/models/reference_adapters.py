"""Checks reference adapters (IP-Adapters) from config files and weight headers: nothing is loaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from promptmill.configs.model import Model
from promptmill.configs.weights import PartWeights, ReferenceWeights, Weights
from promptmill.manifests.steering import Reading
from promptmill.pipelines.models.clip_sources import hub_file
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.models.family import Adapters
from promptmill.pipelines.models.pipeline_classes import class_for, modes_of
from promptmill.pipelines.models.sources import part_place
from promptmill.pipelines.work.errors import ModelError

REDUX = "FluxPriorReduxPipeline"
# What adapters read images through, by whose they are: the class in transformers, and the names by which configs say that a model
# is one, or holds one.
ENCODERS: dict[Adapters | None, tuple[str, tuple[str, ...]]] = {
    "unet": ("CLIPVisionModelWithProjection", ("clip_vision_model", "CLIPModel", "clip")),
    "flux": ("CLIPVisionModelWithProjection", ("clip_vision_model", "CLIPModel", "clip")),
    "sd3": ("SiglipVisionModel", ("siglip_vision_model", "SiglipModel", "siglip")),
}
# Pipelines of Flux, and of families that are made of it, that take embeddings of images.
TAKING = frozenset(
    {
        "ChromaImg2ImgPipeline",
        "ChromaPipeline",
        "FluxControlNetPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxKontextInpaintPipeline",
        "FluxKontextPipeline",
        "FluxPipeline",
    }
)
# Why pipelines that can load adapters are refused beside them, by what their names begin with.
UNREAD = {
    "AltDiffusion": "hands every adapter the tokens of a picture, and raises where an adapter reads the picture's one embedding"
}
READS = {"image": "pictures", "face": "embeddings of faces", "face_plus": "embeddings of faces and pictures of them"}


def adapter_place(weights: PartWeights) -> Path:
    """Return the file of an adapter on this machine, fetched from the hub where it lies there.

    Raises:
        ModelError: There is no such file.
    """
    place = part_place(weights)
    inside = "/".join(filter(None, (weights.subfolder, weights.weight_name)))
    return place if place is not None else hub_file(weights.source, inside, weights.revision)


def kinds_of_references(pipeline: str) -> tuple[str, ...]:
    """Return the names of the ways by which reference images come into the models of a pipeline class: IP-Adapters, Redux."""
    family = family_of(pipeline)
    adapted = family.image_prompts and (family.image_prompts != "flux" or _taking(pipeline, modes_of(pipeline)))
    return (*(["IP-Adapters"] if adapted else []), *(["Redux"] if family.redux else []))


def refused_beside(pipeline: str) -> str:
    """Return why a pipeline class has no reference images, after the class's name."""
    return next((reason for begin, reason in UNREAD.items() if pipeline.startswith(begin)), "takes none")


def reading_of(model: Model, pipeline: str, modes: Sequence[str]) -> Reading:
    """Return the limits of reference images beside a pipeline class.

    Args:
        model: The config's model, with references.
        pipeline: The class.
        modes: The modes that the model serves.

    Raises:
        ModelError: No pipeline of the class takes adapters.
    """
    kind = family_of(pipeline).image_prompts
    if kind == "unet":
        return Reading()
    if kind == "sd3":
        return Reading(masks=False, several=False)
    if model.redux and family_of(pipeline).redux is None:
        raise ModelError(
            f"{model.base}: model.references: {pipeline} takes IP-Adapters, each with a weight_name; Redux is for Flux"
        )
    taking = None if model.redux else _taking(pipeline, modes)
    if taking is not None and not taking:
        raise ModelError(f"{model.base}: model.references: no pipeline of {pipeline} takes IP-Adapters; Redux is for it")
    # Where the prompt's length, which a Redux makes another one, is taken for the negative prompt's, diffusers raises.
    return Reading(masks=False, modes=taking, true_cfg=("txt2img",) if model.redux and family_of(pipeline).true_cfg else None)


def _taking(pipeline: str, modes: Iterable[str]) -> tuple[str, ...]:
    return tuple(mode for mode in modes if class_for(pipeline, mode) in TAKING)


def check_references(
    model: Model, denoiser: Mapping[str, Any], encoder: Mapping[str, Any] | None, processor: Mapping[str, Any] | None = None
) -> None:
    """Compare the adapters of a config with the UNet of the base model and with the image encoder.

    Args:
        model: The config's model.
        denoiser: The UNet's config.
        encoder: The image encoder's config; None where there is none.
        processor: The config of the base's own image processor (feature_extractor); None where the base has none.

    Raises:
        ModelError: An adapter is for another base or another image encoder, reads no images, or is none.
    """
    if not model.references:
        return
    for name, weights in model.references.items():
        if not weights.weight_name and not weights.source.endswith(".safetensors"):
            place = f"model.references.{name}"
            raise ModelError(f"{place}: needs a weight_name, the adapter's .safetensors file in {weights.source}")
    seen = check_encoder(model, "unet", encoder, processor)
    for name, weights in model.references.items():
        _check_adapter(f"model.references.{name}", weights, denoiser, seen)


def check_encoder(
    model: Model, kind: Adapters, encoder: Mapping[str, Any] | None, processor: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Check that the image encoder of a config is one that adapters read images through, and return its own config.

    Args:
        model: The config's model.
        kind: Whose the adapters are.
        encoder: The config of the image encoder, or of a model that holds it; None where there is none.
        processor: The config of the image processor before it; None where there is none.

    Raises:
        ModelError: It is another model, or reads pictures of another size than the processor makes.
    """
    if (source := model.reads_references) is None:
        return {}
    where = f"model.image_encoder: {'/'.join(filter(None, (source.source, source.subfolder)))}"
    wanted, alike = ENCODERS[kind]
    if encoder is None:
        raise ModelError(f"{where}: has no config.json; set model.image_encoder to the adapters' {wanted}")
    names = [*(encoder.get("architectures") or []), encoder.get("model_type")]
    if not {*names} & {wanted, *alike}:
        raise ModelError(f"{where}: is a {names[0] or 'model of no class'}, and adapters read images through a {wanted}")
    own = {**encoder, **(encoder.get("vision_config") or {})}
    side, sides = own.get("image_size"), _sides(processor) if processor else None
    if sides is not None and isinstance(side, int) and sides != (side, side):
        said = f"reads pictures of {side}×{side} pixels, and the feature_extractor of {model.base} makes {sides[1]}×{sides[0]}"
        raise ModelError(f"{where}: {said}; take an encoder of that size, or a base with another feature_extractor")
    return own


def face_widths(model: Model) -> dict[str, int | None]:
    """Return of how many values the embeddings of faces are that adapters read, by type.

    Raises:
        ModelError: An adapter cannot be read.
    """
    shapes = {name: shapes_of(adapter_place(model.references[name])) for name in model.faces}
    read = ("image_proj.proj.0.weight", "image_proj.proj_in.weight")
    return {name: next((one[tensor][1] for tensor in read if tensor in one), None) for name, one in shapes.items()}


def check_redux(model: Model, denoiser: Mapping[str, Any], read: Callable[[Weights, str], dict[str, Any] | None]) -> None:
    """Compare the priors of a config with the transformer of the base model.

    Args:
        model: The config's model, a Flux whose references are folders.
        denoiser: The transformer's config.
        read: Returns a config file of weights by its path there; None where there is none.

    Raises:
        ModelError: One is no Redux, or is for another base; or an image encoder is given.
    """
    if model.image_encoder:
        raise ModelError("model.image_encoder: Redux brings its own; leave it out")
    for name, weights in model.references.items():
        where = f"model.references.{name}: {weights.source}"
        if (read(weights, "model_index.json") or {}).get("_class_name") != REDUX:
            file = "or the file of an IP-Adapter as its weight_name"
            raise ModelError(f"{where}: is no Redux: name the folder of a {REDUX}, without a weight_name, {file}")
        its = (read(weights, "image_embedder/config.json") or {}).get("txt_in_features", 4096)
        if (base := denoiser.get("joint_attention_dim", 4096)) != its:
            raise ModelError(f"{where} is for another base model: its txt_in_features are {its}, the base's texts have {base}")


def _sides(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of the pictures that an image processor of transformers makes; None where its config does not say."""
    crops = processor.get("do_center_crop", True)
    match processor.get("crop_size" if crops else "size"):
        case int(side):
            return side, side
        case {"height": int(height), "width": int(width)}:
            return height, width
    return None


def _check_adapter(where: str, weights: ReferenceWeights, denoiser: Mapping[str, Any], encoder: Mapping[str, Any]) -> None:
    shapes = shapes_of(adapter_place(weights))
    said = f"{where}: {weights.weight_name or weights.source}"
    keys = [shape for name, shape in shapes.items() if name.startswith("ip_adapter.") and name.endswith("to_k_ip.weight")]
    if not keys or not any(name.startswith("image_proj.") for name in shapes):
        raise ModelError(f"{said} is no IP-Adapter: it has no tensors named image_proj.… and ip_adapter.…")
    if (wanted := denoiser.get("cross_attention_dim")) != keys[0][1]:
        raise ModelError(f"{said} is for another base model: its cross_attention_dim is {keys[0][1]}, the base's is {wanted}")
    kind = _kind_of(shapes)
    if kind != weights.kind:
        raise ModelError(f"{said} reads {READS[kind]}; set {where}.kind to {kind}")
    if kind == "face":
        return
    plus = (("perceiver_resampler.proj_in", "hidden_size"),)
    others = (("proj", "projection_dim"), ("proj_in", "hidden_size"), ("proj.0", "hidden_size"))
    for tensor, key in plus if kind == "face_plus" else others:
        shape = shapes.get(f"image_proj.{tensor}.weight")
        if shape is not None and shape[1] != (have := encoder.get(key)):
            raise ModelError(f"{said} reads {shape[1]} values of an image, and the image encoder gives {have}; is it another's?")


def _kind_of(shapes: Mapping[str, list[int]]) -> str:
    """Return the kind of an adapter by its tensors, as `configs.weights.ReferenceWeights` names kinds."""
    if any(name.startswith("image_proj.perceiver_resampler.") for name in shapes):
        return "face_plus"
    if shapes.get("image_proj.proj_in.weight", [0, 0])[1] == 512:
        return "face"  # InstantID's, which reads the 512 values as one token
    # Adapters of whole faces, which read pictures, have a norm as their third layer (image_proj.proj.3).
    return "face" if "image_proj.proj.0.weight" in shapes and "image_proj.proj.3.weight" not in shapes else "image"


def shapes_of(place: Path) -> dict[str, list[int]]:
    """Return the shapes of an adapter's tensors by name, of vectors as of columns.

    Raises:
        ModelError: The file cannot be read.
    """
    try:
        with safe_open(place, framework="numpy") as file:
            # Of a vector the second side is 1, as of a column.
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: [*shape, 1, 1][: max(2, len(shape))] for name, shape in shapes.items()}
    except Exception as error:  # a Rust error
        raise ModelError(f"{place}: cannot be read as safetensors: {' '.join(str(error).split())[:200]}") from None
