"""Checks the language models that a config declares, by their config files alone: nothing is loaded."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from promptmill.configs.language_models import Captions, Rewriting
from promptmill.configs.weights import SAFETENSORS, Weights
from promptmill.pipelines.models.annotators import architecture_of
from promptmill.pipelines.models.clip_sources import NO_PICKLES, TOKENIZERS
from promptmill.pipelines.models.compatibility import config_of
from promptmill.pipelines.models.scorer_sources import PROCESSORS
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError

# What the names of classes in transformers end with that see images and write text.
VISION_LANGUAGE = ("ForConditionalGeneration", "ForVisionText2Text", "ForImageTextToText", "VisionEncoderDecoderModel")
# What those of causal language models end with.
CAUSAL = ("ForCausalLM", "LMHeadModel")
# What a config of experts whose choice decides the shapes of what is computed has a number of them under.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# What configs of models that see images have a part of them under.
SEEING = ("vision_config", "vq_config", "encoder", "vision_model")


def check_captions(captions: Captions) -> None:
    """Check that the model of captions is there, sees images, and has a tokenizer and an image processor.

    Raises:
        ModelError: One line on what is missing or does not fit.
    """
    where = "captions.model"
    config = checked(where, captions.model, captions.batch, "a vision-language model of transformers, such as Florence-2")
    if not architecture_of(config).endswith(VISION_LANGUAGE) or not any(name in config for name in SEEING):
        said = f"{captions.model.source} is a {architecture_of(config)}, which writes nothing of images"
        raise ModelError(f"{where}: {said}; needed is a vision-language model of transformers, such as Florence-2")
    _check_files(where, captions.model, ((PROCESSORS, "image processor"),))


def check_rewriting(rewriting: Rewriting) -> None:
    """Check that the model that rewrites prompts is there, is a causal one, and has a tokenizer.

    Raises:
        ModelError: One line on what is missing or does not fit.
    """
    where, wanted = "prompts.rewrite.model", "a causal language model of transformers, such as Qwen or Llama"
    config = checked(where, rewriting.model, rewriting.batch, wanted)
    if not architecture_of(config).endswith(CAUSAL):
        raise ModelError(f"{where}: {rewriting.model.source} is a {architecture_of(config)}; needed is {wanted}")


def checked(where: str, weights: Weights, batch: int, wanted: str) -> Mapping[str, Any]:
    """Return the config of a language model.

    Args:
        where: The model's place in promptmill's config.
        weights: Where the model lies.
        batch: How many texts it generates at a time.
        wanted: What is needed, in words.

    Raises:
        ModelError: The model is not there, brings code of its own, or lacks a tokenizer; or its texts would depend on each other.
    """
    config = config_of(weights, "config.json")
    if config is None:
        raise ModelError(f"{where}: {weights.source} has no config.json that can be read; needed is {wanted}")
    if "auto_map" in config and not _in_transformers(str(config.get("model_type"))):
        raise ModelError(f"{where}: {weights.source} brings code of its own, which is not run; needed is {wanted}")
    experts = {name for part in (config, *filter(_is_part, config.values())) for name in EXPERTS if (part.get(name) or 0) > 1}
    if experts and batch > 1:
        said = f"{weights.source} is a mixture of experts, in which texts of one batch may decide on each other's last bits"
        raise ModelError(f"{where}: {said}; set batch: 1")
    _check_files(where, weights, ((("*" + SAFETENSORS,), f"{SAFETENSORS}; {NO_PICKLES}"), (TOKENIZERS, "tokenizer")))
    return config


def _in_transformers(kind: str) -> bool:
    """Return whether transformers has a folder of this type of model, without importing transformers."""
    found = find_spec("transformers")
    places = found.submodule_search_locations if found else None
    return bool(kind) and any((Path(place) / "models" / kind.replace("-", "_")).is_dir() for place in places or ())


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping)


def _check_files(where: str, weights: Weights, wanted: tuple[tuple[tuple[str, ...], str], ...]) -> None:
    """Raise ModelError where a folder lacks a file; what a hub repository lacks is said when it is loaded."""
    folder = local_folder(weights.source)
    for names, what in wanted if folder is not None else ():
        assert folder is not None
        if not any(any(folder.glob(name)) for name in names):
            raise ModelError(f"{where}: {weights.source} holds no {what}")
