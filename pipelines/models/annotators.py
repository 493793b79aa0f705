"""Checks whether the models that a config declares as annotators can make their maps, by config files alone: nothing is loaded."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from promptmill.configs.model import Model
from promptmill.configs.preprocessors import ANNOTATORS, OF_FILES
from promptmill.configs.weights import PartWeights, Weights
from promptmill.pipelines.models.ade20k import PALETTE
from promptmill.pipelines.models.clip_sources import hub_file
from promptmill.pipelines.models.sources import part_place
from promptmill.pipelines.work.errors import ModelError

Config = Mapping[str, Any]
Read = Callable[[Weights, str], Config | None]

# By annotator, what the names of its classes in transformers end with.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "depth": ("ForDepthEstimation",),
    "seg": ("ForSemanticSegmentation", "Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation"),
    "sam": ("SamModel",),
    "pose": ("VitPoseForPoseEstimation",),
    "detector": ("ForObjectDetection",),
}
# By annotator that is one file, tensors that the file has, with the number of their dimensions.
TENSORS: Mapping[str, Mapping[str, int]] = {
    "softedge": {"norm": 4, "block1.convs.0.weight": 4, "block5.projection.weight": 4},
    "lineart": {"model0.1.weight": 4, "model1.0.weight": 4, "model3.0.weight": 4, "model4.1.weight": 4},
}
PERSON = "person"
JOINTS = 17  # of COCO, which ViTPose finds


def check_annotators(model: Model, read: Read) -> None:
    """Check the annotators of a config.

    Args:
        model: The config's model.
        read: Reads a config file of a set of weights; returns None where there is no such file.

    Raises:
        ModelError: An annotator is not there, or is of a class that makes no such maps, or draws in colours that nobody states.
    """
    for name, one in model.annotators.items():
        where = f"model.annotators.{name}"
        if name in OF_FILES:
            _check_file(where, name, file_of(one))
            continue
        config = _checked(where, name, one, read)
        if name == "seg" and palette_of(config) is None:
            said = f"{one.source} knows {_classes(config)} classes, not the {len(PALETTE)} of ADE20K, and its config has no palette"
            raise ModelError(f"{where}: {said}: add one to a copy of its config.json, a list of [r, g, b]")
        if name == "pose" and (joints := _classes(config)) != JOINTS:
            raise ModelError(f"{where}: {one.source} finds {joints} joints, and poses are drawn of the {JOINTS} of COCO")
        if one.detector is not None:
            found = _checked(f"{where}.detector", "detector", one.detector, read)
            if PERSON not in {str(label).lower() for label in (found.get("id2label") or {}).values()}:
                raise ModelError(f"{where}.detector: {one.detector.source} finds no class named {PERSON}")


def palette_of(config: Config) -> tuple[tuple[int, int, int], ...] | None:
    """Return the colours of a segmentation model's classes: its config's `palette`, else ADE20K's for 150 classes, else None."""
    match config.get("palette"):
        case [*colors] if len(colors) == _classes(config):
            levels = {type(level) is int and 0 <= level <= 255 for color in colors if isinstance(color, list) for level in color}
            if all(isinstance(color, list) and len(color) == 3 for color in colors) and levels == {True}:
                return tuple((r, g, b) for r, g, b in colors)
    return PALETTE if _classes(config) == len(PALETTE) else None


def file_of(weights: PartWeights) -> Path:
    """Return the file of an annotator that is one file, fetched from the hub where it lies there. Raises ModelError."""
    place = part_place(weights)
    inside = "/".join(filter(None, (weights.subfolder, weights.weight_name)))
    return place if place is not None else hub_file(weights.source, inside, weights.revision)


def _classes(config: Config) -> int:
    named = config.get("id2label")
    return len(named) if isinstance(named, Mapping) and named else 2  # transformers' default, which configs do not name


def _checked(where: str, name: str, weights: PartWeights, read: Read) -> Config:
    config = read(weights, config_file(weights))
    wanted = ANNOTATORS.get(name, "a detection model of transformers")
    if config is None:
        raise ModelError(f"{where}: {weights.source} has no {config_file(weights)}; needed is {wanted}")
    backbone = config.get("backbone_config")
    if isinstance(backbone, Mapping) and "auto_map" in backbone:  # of the model's own, transformers is told not to run it
        raise ModelError(f"{where}: {weights.source}: its backbone brings code, which is not run")
    if not architecture_of(config).endswith(CLASSES[name]):
        raise ModelError(f"{where}: {weights.source} is a {architecture_of(config)}; needed is {wanted}")
    return config


def config_file(weights: PartWeights) -> str:
    """Return the path of a model's config inside its source."""
    return "/".join(filter(None, (weights.subfolder, "config.json")))


def architecture_of(config: Config) -> str:
    """Return the class in transformers that a model's config names; else the type of the model."""
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else str(config.get("model_type"))


def _check_file(where: str, name: str, place: Path) -> None:
    try:
        with safe_open(place, framework="numpy") as file:
            there = set(file.keys())
            wrong = [key for key, size in TENSORS[name].items() if key not in there or len(file.get_slice(key).get_shape()) != size]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{where}: {place.name}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if wrong:
        raise ModelError(f"{where}: {place.name} has no tensor {wrong[0]}; needed is {ANNOTATORS[name]}")
