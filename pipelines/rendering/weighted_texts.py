"""Makes the text arguments of rows whose prompts have weights or parts, change between steps, or are longer than an encoder reads.

compel weights words between the embedding of the text and that of no text, or of the text without the words, and encodes a long
text in chunks. All other rows hand their words to diffusers' pipelines. The embeddings of a row depend on its own texts alone, and
equal texts have equal tokens, which the text encoders answer once.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch

from promptmill.manifests.a1111_prompts import Part, Prompt, plain_uses, read
from promptmill.manifests.requests import Request
from promptmill.pipelines.work.evaluations import StepsLeft, steps_of

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.weighting_encoders import Embeddings, Encoders

CALLBACK, TENSORS = "callback_on_step_end", "callback_on_step_end_tensor_inputs"
MOST_LENGTHS = 4096  # of texts that are remembered, in tokens
CHANGING = {"prompt_embeds": "prompt_embeds", "add_text_embeds": "pooled_prompt_embeds"}  # by the names that loops have for them


@dataclass
class WeightedTexts:
    """Encodes prompts for the pipelines of one model.

    Attributes:
        base: A pipeline of the model.
        weighting: `Family.weighting`.
        clip_skip: Layers of the text encoders left out at their end.
        is_long: Whether long texts are read in chunks, where text encoders of CLIP alone read them.
        device: Where the embeddings are made.
    """

    base: Any
    weighting: str
    clip_skip: int
    is_long: bool
    device: torch.device
    _lengths: dict[str, int] = field(default_factory=dict)

    @cached_property
    def encoders(self) -> "Encoders":
        from promptmill.pipelines.rendering.weighting_encoders import encoders_of

        return encoders_of(self.base, self.weighting, self.clip_skip, self.is_long, self.device)

    def needed(self, request: Request) -> bool:
        """Return whether a request's prompts need embeddings that their words alone do not say."""
        if request.syntax is not None:
            for text in (request.prompt, request.negative_prompt):
                uses = plain_uses(read(text))
                if any(column is not None for column in (uses.weights, uses.breaks, uses.ands, uses.changes)):
                    return True
        return self.chunks and any(self._is_too_long(words) for words in (request.words, request.negative_words))

    @property
    def chunks(self) -> bool:
        """Return whether long texts are read whole."""
        return self.is_long and self.weighting == "clip"

    def _is_too_long(self, words: str) -> bool:
        tokenizer = self.base.components.get("tokenizer") or self.base.components["tokenizer_2"]
        # A token stands for a byte or more, and there are two besides.
        if len(words.encode()) + 2 <= tokenizer.model_max_length:
            return False
        if words not in self._lengths:
            if len(self._lengths) == MOST_LENGTHS:
                self._lengths.clear()
            self._lengths[words] = len(tokenizer(words, truncation=False, verbose=False).input_ids)
        return self._lengths[words] > tokenizer.model_max_length

    def arguments(self, pipeline: Any, request: Request, guided: bool, several: int, left: StepsLeft) -> dict[str, Any]:
        """Return the text arguments of a pipeline call for a request.

        Args:
            pipeline: The pipeline.
            request: The request.
            guided: Whether guidance leads away from the negative prompt.
            several: Candidates of the call.
            left: How many steps a strength leaves.
        """
        # Pipelines of SDXL take zeros in place of the embeddings of no text.
        zeros = self.base.config.get("force_zeros_for_empty_prompt") and not request.negative_words
        negative = _read(request.negative_prompt, request.syntax) if guided and not zeros else None
        steps = steps_of(request.steps, request.strength, left)
        texts = _Texts(self.encoders, _read(request.prompt, request.syntax), negative, steps)
        said: dict[str, Any] = {name: _repeated(value, several) for name, value in texts.at(1).items()}
        if texts.changes:
            order = getattr(pipeline.scheduler, "order", 1)  # samplers of second order run the loop twice for a step
            said[CALLBACK] = partial(_change, texts, order, several, guided)
            said[TENSORS] = [name for name in ("latents", *CHANGING) if name in pipeline._callback_tensor_inputs]
        return said


class _Texts:
    """Holds the prompts of a row, and makes the arguments that they are at a step, all of one length."""

    def __init__(self, encoders: "Encoders", prompt: Prompt, negative: Prompt | None, steps: int):
        self.steps, self._encoders = steps, encoders
        self._prompts = {"": prompt} | ({"negative_": negative} if negative is not None else {})
        states = {parts for one in self._prompts.values() for _, parts in one.states(steps)}
        self._embedded: dict[tuple[Part, ...], Embeddings] = {parts: encoders.embedded(parts) for parts in states}
        self._length = max(embeddings.shape[1] for embeddings, _ in self._embedded.values())
        self.changes = any(one.uses.changes is not None for one in self._prompts.values())

    def is_same(self, one: int, other: int) -> bool:
        """Return whether the prompts are the same at two steps."""
        return all(prompt.at(one, self.steps) == prompt.at(other, self.steps) for prompt in self._prompts.values())

    def at(self, step: int) -> dict[str, torch.Tensor]:
        """Return the arguments of a call whose prompts are as they are at a step, counted from 1."""
        said = {}
        for before, prompt in self._prompts.items():
            embeddings, pooled = self._embedded[prompt.at(step, self.steps)]
            said[f"{before}prompt_embeds"] = self._encoders.to_length(embeddings, self._length)
            if pooled is not None:
                said[f"{before}pooled_prompt_embeds"] = pooled
        return said


def _change(
    texts: _Texts, order: int, several: int, guided: bool, running: Any, turn: int, timestep: Any, tensors: dict[str, Any]
) -> dict[str, Any]:
    """Return the tensors of a pipeline's loop with the texts of the step that follows a turn, counted from 0."""
    before, step = turn // order + 1, (turn + 1) // order + 1
    if step > texts.steps or texts.is_same(before, step):
        return tensors
    now, changed = texts.at(step), dict(tensors)
    for name, of in CHANGING.items():
        if name not in tensors or of not in now:
            continue
        rows = [_repeated(now[of], several)]
        if guided:
            # As pipelines have them: those that guidance leads away from stand first.
            rows.insert(0, _repeated(now.get(f"negative_{of}", torch.zeros_like(now[of])), several))
        changed[name] = torch.cat(rows)
    return changed


def _repeated(value: torch.Tensor, several: int) -> torch.Tensor:
    return value.repeat(several, *[1] * (value.ndim - 1))


def _read(text: str, syntax: str | None) -> Prompt:
    return read(text) if syntax is not None else Prompt.of_words(text)
