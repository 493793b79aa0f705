"""Computes text embeddings once for each distinct text, and keeps them."""

import inspect
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from promptmill.pipelines.rendering.loading import LoadedModel

KEPT = 256 * 2**20  # bytes of embeddings on the device: about 400 texts of SDXL in fp32, 2,900 of Stable Diffusion 1.5 in fp16


class TextEncoder:
    """Encodes prompts by the pipeline's own `encode_prompt`, always in one batch size, so that bits do not depend on neighbours.

    A family whose pipeline is not of the Stable Diffusion kind gets its prompts as text (`arguments`), and encodes them itself.
    """

    def __init__(self, model: LoadedModel, batch: int):
        self._model, self._batch, self.device = model, batch, model.device
        self.seconds = 0.0  # spent so far
        self._kept: OrderedDict[tuple[Any, ...], tuple[torch.Tensor, ...]] = OrderedDict()
        self._bytes = 0
        self._tokenizers = list(_tokenizers(model.base))
        self._as_text = not type(model.base).__name__.startswith("StableDiffusion") or "unet" not in model.base.components

    def arguments(self, prompts: Sequence[str], negatives: Sequence[str], loras: tuple[Any, ...], guided: bool) -> dict[str, Any]:
        """Return the text arguments of one pipeline call, for a batch.

        Args:
            prompts, negatives: One each for each sample.
            loras: The LoRAs that the model is adapted with now; they can adapt text encoders too.
            guided: Whether there is guidance, so that negatives are used.
        """
        if self._as_text:
            return {"prompt": list(prompts), **({"negative_prompt": list(negatives)} if guided else {})}
        names = ("prompt_embeds", "pooled_prompt_embeds")
        made = dict(zip(names, self._stacked(prompts, loras, negative=False), strict=False))
        if guided:
            negative = (f"negative_{name}" for name in names)
            made |= zip(negative, self._stacked(negatives, loras, negative=True), strict=False)
        return made

    def truncated(self, prompt: str) -> bool:
        """Return whether one of the text encoders reads only the beginning of a prompt."""
        return any(len(one(prompt, truncation=False, verbose=False).input_ids) > most for one, most in self._tokenizers)

    def _stacked(self, texts: Sequence[str], loras: tuple[Any, ...], negative: bool) -> list[torch.Tensor]:
        new = [text for text in dict.fromkeys(texts) if (text, loras, negative) not in self._kept]
        for some in self._batches(new):
            started = time.monotonic()
            encoded = self._encode(some + [some[-1]] * (self._batch - len(some)), negative)
            self.seconds += time.monotonic() - started
            for place, text in enumerate(some):
                self._kept[text, loras, negative] = own = tuple(part[place : place + 1].clone() for part in encoded)
                self._bytes += _bytes(own)
        for text in texts:
            self._kept.move_to_end((text, loras, negative))
        stacked = [torch.cat(parts) for parts in zip(*(self._kept[text, loras, negative] for text in texts), strict=True)]
        while self._bytes > KEPT:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return stacked

    def _batches(self, texts: list[str]) -> Iterator[list[str]]:
        # An empty negative prompt means none, which some families take for zeros: it cannot share a call with others.
        if "" in texts:
            yield [""]
        said = [text for text in texts if text]
        yield from (said[start : start + self._batch] for start in range(0, len(said), self._batch))

    @torch.no_grad()
    def _encode(self, texts: list[str], negative: bool) -> tuple[torch.Tensor, ...]:
        base = self._model.base
        # The negative path differs in diffusers: it leaves clip_skip out, and makes zeros where SDXL wants them.
        negatives = texts if any(texts) else None
        what = {"prompt": [""] * len(texts), "negative_prompt": negatives} if negative else {"prompt": texts}
        skip = {"clip_skip": self._model.clip_skip} if self._model.clip_skip else {}
        options = {"device": self._model.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": negative}
        encoded = base.encode_prompt(**what, **options, **skip)
        # (positive, negative) for one text encoder, (positive, negative, pooled, negative pooled) for two.
        return tuple(encoded[1::2] if negative else encoded[0::2])


def _tokenizers(base: Any) -> Iterator[tuple[Any, int]]:
    """Yield a pipeline's tokenizers, each with the most tokens that its text encoder is given."""
    parameters = inspect.signature(type(base).__call__).parameters
    usual = parameters["max_sequence_length"].default if "max_sequence_length" in parameters else None
    for name, part in base.components.items():
        if name.startswith("tokenizer") and callable(part):
            # The parameter is for the encoders of long texts; CLIP's have a length of their own.
            long = not type(part).__name__.startswith("CLIP") and isinstance(usual, int)
            yield part, min(part.model_max_length, usual) if long else part.model_max_length


def _bytes(parts: tuple[torch.Tensor, ...]) -> int:
    return sum(part.numel() * part.element_size() for part in parts)
