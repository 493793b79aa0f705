"""Checks whether a prior fits the decoder that is given the prior's embeddings, by config files alone: nothing is loaded."""

from collections.abc import Callable, Mapping
from typing import Any

from promptmill.configs.model import Model
from promptmill.configs.weights import Weights
from promptmill.pipelines.models.families import family_of
from promptmill.pipelines.work.errors import ModelError

Config = Mapping[str, Any]
Read = Callable[[Weights, str], Config | None]

INDEX = "model_index.json"
# The width of embeddings by the decoder's config and by the prior's: of Kandinsky 2, Stable Cascade and Würstchen.
WIDTHS = (
    ("unet/config.json", "encoder_hid_dim", "prior/config.json", "embedding_dim"),
    ("decoder/config.json", "effnet_in_channels", "prior/config.json", "in_channels"),
    ("decoder/config.json", "effnet_embd", "prior/config.json", "c_in"),
)


def index_of_prior(model: Model, decoder: str, read: Read) -> Config:
    """Return the index of a model's prior; empty where the model has none, and needs none.

    Args:
        model: The config's model.
        decoder: The class that its base was saved as.
        read: Reads a config file of a set of weights; returns None where there is no such file.

    Raises:
        ModelError: The prior is missing, of another class than the decoder needs, or more than the base takes.
    """
    wanted = family_of(decoder).prior
    if model.prior is None:
        if wanted is not None:
            raise ModelError(f"{model.base}: {decoder} decodes what a {wanted} makes of a prompt; name one as model.prior")
        return {}
    if wanted is None:
        raise ModelError(f"model.prior: {model.base} is a {decoder}, which reads prompts itself; leave it out")
    index = read(model.prior, INDEX)
    if index is None:
        raise ModelError(f"model.prior: {model.prior.source} has no {INDEX}; is it a model in diffusers' format?")
    if (its := index.get("_class_name")) != wanted:
        raise ModelError(f"model.prior: {model.prior.source} is a {its}, and {model.base} needs a {wanted}")
    return index


def check_prior(model: Model, prior: Weights, read: Read) -> None:
    """Compare the embeddings that a prior makes with those that the base takes.

    Raises:
        ModelError: They have different widths.
    """
    for place, key, other, its in WIDTHS:
        takes = (read(model.layout, place) or {}).get(key)
        makes = (read(prior, other) or {}).get(its)
        if takes is not None and makes is not None and takes != makes:
            said = f"its embeddings have {makes} values, and {model.base} takes {takes}"
            raise ModelError(f"model.prior: {prior.source} is for another base: {said}")
