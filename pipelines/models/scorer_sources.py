"""Finds the scorers beside CLIP, and checks before anything runs that they fit together; free of torch, for a plan's sake."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from promptmill.configs.schema import Ranking
from promptmill.configs.scorers import CLIP, HeadScorer, PreferenceScorer
from promptmill.configs.weights import SAFETENSORS
from promptmill.pipelines.models.clip_sources import (
    NO_PICKLES,
    TOKENIZERS,
    WORDS,
    embedding_width,
    fetched_file,
    hub_file,
    hub_folder,
    one_line,
)
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
CONCEPTS = ("concept_embeds", "concept_embeds_weights")
SPECIAL_CARE = ("special_care_embeds", "special_care_embeds_weights")


@dataclass(frozen=True)
class HeadForm:
    """Holds the form of a head's file.

    Attributes:
        width: Width of the embeddings that the head takes.
        layers: The head's linear layers in order, each by the names of its weight and of its bias, None where it has none; no
            layers at all for the concepts of a safety checker.
    """

    width: int
    layers: tuple[tuple[str, str | None], ...] = ()


def check_scorers(ranking: Ranking) -> None:
    """Check all scorers of a ranking: their files can be read, and each head fits the embedding that it reads.

    Raises:
        ModelError: One line on what is missing or does not fit.
    """
    widths = {CLIP: embedding_width(ranking)}
    for scorer in ranking.scorers:
        if scorer.kind in WIDTHS:
            widths[scorer.name] = WIDTHS[scorer.kind](scorer)
    for scorer in ranking.scorers:
        if isinstance(scorer, HeadScorer):
            form = head_form(fetched_file(scorer), scorer.source)
            if form.width != widths[scorer.reads]:
                reads = f"{scorer.source} takes embeddings of {form.width:,} numbers, and those of {scorer.reads}"
                raise ModelError(f"ranking.scorers.{scorer.name}: {reads} have {widths[scorer.reads]:,}")
            if not form.layers and (scorer.activation != "none" or scorer.output != "none"):
                raise ModelError(
                    f"ranking.scorers.{scorer.name}: activation and output are for layers, {scorer.source} has concepts"
                )


def preference_width(scorer: PreferenceScorer) -> int:
    """Return the width of a preference model's embeddings, from its config alone; a local folder is checked to be whole.

    Raises:
        ModelError: There is no such model, or it is none of transformers' CLIP models, or lacks a tokenizer or a processor.
    """
    folder = local_folder(scorer.source)
    path = folder / "config.json" if folder is not None else hub_file(scorer.source, "config.json", scorer.revision)
    try:
        config = json.loads(path.read_text())
        kind, width = config.get("model_type"), config.get("projection_dim", 512)
    except FileNotFoundError:
        raise ModelError(f"{scorer.source}: holds no config.json, so it is not a model of transformers") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{scorer.source}: config.json cannot be read: {one_line(error)}") from None
    if kind != "clip" or not isinstance(width, int):
        raise ModelError(f"{scorer.source}: is of the kind {kind!r}, and a preference scorer is a CLIP model of transformers")
    if folder is not None:
        check_preference(folder, scorer)
    return width


# How wide the embeddings are of each kind of scorer that has some; to find out is to see that the scorer is there and can be read.
WIDTHS: dict[str, Callable[[Any], int]] = {"open_clip": embedding_width, "preference": preference_width}


def preference_folder(scorer: PreferenceScorer) -> Path:
    """Return the folder of a preference model, fetched where it is on the hub.

    Raises:
        ModelError: The folder is not there, or not whole.
    """
    folder = local_folder(scorer.source)
    if folder is None:
        folder = hub_folder(scorer.source, scorer.revision, [*WORDS, f"*{SAFETENSORS}"])
    check_preference(folder, scorer)
    return folder


def check_preference(folder: Path, scorer: PreferenceScorer) -> None:
    """Raise ModelError where a folder lacks safetensors, a tokenizer or an image processor."""
    for names, what in (
        ((f"*{SAFETENSORS}",), f"{SAFETENSORS}; {NO_PICKLES}"),
        (TOKENIZERS, "tokenizer"),
        (PROCESSORS, PROCESSORS[0]),
    ):
        if not any(any(folder.glob(name)) for name in names):
            raise ModelError(f"{scorer.source}: holds no {what}")


def head_form(file: Path, source: str) -> HeadForm:
    """Return the form of a head's file, from the names and shapes of its tensors.

    Two forms are known. The first is linear layers one after the other, under any names whose numbers order them, the last with one
    output. LAION's aesthetic predictors have this form, christophschuhmann/improved-aesthetic-predictor (layers.0, .2, .4, .6, .7)
    and LAION-AI/aesthetic-predictor (weight, bias). The second is the concepts of CompVis/stable-diffusion-safety-checker, whose
    other tensors are not read.

    Raises:
        ModelError: The file is no safetensors file, or has another form.
    """
    try:
        with safe_open(file, "np") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{source}: is not a {SAFETENSORS} file: {one_line(error)}") from None
    width = _concepts(shapes)
    return HeadForm(width) if width is not None else _layers(shapes, source)


def _concepts(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Return the width of the concepts' embeddings, or None where there are no concepts."""
    if any(len(shapes.get(name, ())) != 2 - part for part, name in enumerate(CONCEPTS)):
        return None
    (number, width), (numbers,) = (shapes[name] for name in CONCEPTS)
    special = [tuple(shapes[name]) for name in SPECIAL_CARE if name in shapes]
    fits = not special or (len(special) == 2 and special[0] == (*special[1], width))
    return width if number == numbers and number and fits else None


def _layers(shapes: Mapping[str, Sequence[int]], source: str) -> HeadForm:
    known = f"a head is linear layers, the last with one output, or {' and '.join(CONCEPTS)}"
    weights = sorted((name for name in shapes if name.rpartition(".")[2] == "weight"), key=_numbers)
    biases = {name: f"{name.removesuffix('weight')}bias" for name in weights}
    left = sorted(set(shapes) - {*biases, *biases.values()})
    if left or not weights:
        raise ModelError(f"{source}: holds {left[0] if left else 'no layer'}; {known}")
    layers, width = [], None
    for name in weights:
        shape = shapes[name]
        if len(shape) != 2 or (width is not None and shape[1] != width) or shapes.get(biases[name], shape[:1]) != shape[:1]:
            raise ModelError(f"{source}: {name} of shape {'x'.join(map(str, shape))} does not follow on what is before it; {known}")
        width = shape[0]
        layers.append((name, biases[name] if biases[name] in shapes else None))
    if width != 1:
        raise ModelError(f"{source}: its last layer has {width} outputs; {known}")
    return HeadForm(shapes[weights[0]][1], tuple(layers))


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", name)]
