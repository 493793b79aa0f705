"""Writes captions of pictures by vision-language models of transformers, such as Florence-2 and Qwen-VL."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from promptmill.configs.language_models import Captions
from promptmill.pipelines.rendering.generating_text import Asked, TextModel, decoder, padding_token, templated
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.transformers_loading import load_beside, load_model
from promptmill.pipelines.work.errors import FatalError, ModelError, is_fatal
from promptmill.pipelines.work.results import Failure


@dataclass(frozen=True)
class Captioner:
    """Holds a loaded vision-language model, and writes captions with it.

    Attributes:
        model: The model, which generates the text.
        processor: transformers' processor of the model.
        text: What stands before the text, with the place of the image.
        nested: Whether the processor takes a list of pictures for each text, as those of several pictures do.
    """

    model: TextModel
    processor: Any
    text: str
    nested: bool = False

    def captions(self, pictures: Sequence[np.ndarray], seeds: Sequence[int]) -> list[str | Failure]:
        """Return the captions of pictures, or why there is none.

        A caption depends on its picture, its seed and the config's batch alone. The caller has the turn of the process
        (`COMPUTING`).

        Args:
            pictures: (H, W, 3) uint8 each, of any size.
            seeds: By which the tokens of each caption are drawn, where they are.

        Raises:
            FatalError: Memory ran out, or the GPU failed.
        """
        asked = [self.asked(picture, seed) for picture, seed in zip(pictures, seeds, strict=True)]
        written = iter(self.model.texts([one for one in asked if isinstance(one, Asked)]))
        return [next(written) if isinstance(one, Asked) else one for one in asked]

    def asked(self, picture: np.ndarray, seed: int) -> Asked | Failure:
        """Return the inputs of the model for one picture, which is processed by itself; or why there are none."""
        try:
            one = Image.fromarray(picture)
            made = self.processor(images=[[one]] if self.nested else [one], text=[self.text], return_tensors="pt")
        except Exception as error:
            if is_fatal(error):
                raise FatalError(str(error).splitlines()[0]) from error
            return Failure("render_error", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        return Asked({name: one for name, one in made.items() if isinstance(one, torch.Tensor)}, seed)


def load_captioner(captions: Captions, device: torch.device) -> Captioner:
    """Load a vision-language model with its processor, from safetensors alone and without code of its own.

    Args:
        captions: What the config says of captions.
        device: The device of the model.

    Raises:
        ModelError: One line on what cannot be loaded, or what the model lacks.
    """
    weights, auto = captions.model, transformers.AutoModelForImageTextToText
    model = load_model(auto, weights, getattr(torch, captions.dtype), device, "captions of images")
    processor = load_beside(transformers.AutoProcessor, weights, "processor")
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise ModelError(f"{weights.source}: its processor, a {type(processor).__name__}, is none of images and texts")
    try:
        text = with_image(processor, captions.prompt)
    except Exception as error:  # a template may raise anything
        raise ModelError(f"{weights.source}: its chat template fails: {' '.join(str(error).split())[:300]}") from error
    pad = padding_token(tokenizer, model, weights.source)
    briefly = TextModel(model, decoder(tokenizer), captions.model_copy(update={"max_tokens": 1}), pad)
    nested = _takes_nested(Captioner(briefly, processor, text), weights.source)
    return Captioner(TextModel(model, decoder(tokenizer), captions, pad), processor, text, nested)


def _takes_nested(writes: Captioner, source: str) -> bool:
    """Return whether a processor takes a list of pictures for each text, by a caption of a grey picture.

    Raises:
        ModelError: The model writes no caption either way. Otherwise every image of a run would fail, once it is rendered.
    """
    grey, why = np.full((64, 64, 3), 128, np.uint8), list[str]()
    for nested in (False, True):
        try:
            (said,) = replace(writes, nested=nested).captions([grey], [0])
        except FatalError as error:
            raise ModelError(f"captions: {error}") from error
        if not isinstance(said, Failure):
            return nested
        why.append(said.message)
    raise ModelError(f"{source}: writes no caption of a grey picture: {why[0]}")


def with_image(processor: Any, prompt: str) -> str:
    """Return the text that a model is given beside an image: by the processor's chat template where it has one, else the prompt."""
    if not getattr(processor, "chat_template", None):
        return prompt
    content = [{"type": "image"}, *([{"type": "text", "text": prompt}] if prompt else [])]
    return templated(processor, content)
