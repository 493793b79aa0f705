"""Makes texts by language models of transformers, so that a text depends on its own inputs alone, and never on its companions.

Every call of a model has the batch of the config. Texts share a call where their inputs have equal shapes; a call that is not full
is filled with copies of its last text, which are thrown away. So the bits of a text depend on the batch and on the shapes of its
own inputs. A greedy text is what `model.generate` of transformers makes of such a batch.

Where tokens are drawn, each text has a random generator of its own. Of logits l, temperature t and independent E ~ Exp(1), the
token with the greatest l / t - log E is distributed as softmax(l / t): the Gumbel-max trick (Maddison et al., arXiv:1411.0030),
since -log E has the Gumbel distribution.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from promptmill.configs.language_models import Generation
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.work.errors import FatalError, ModelError, is_fatal
from promptmill.pipelines.work.results import Failure

# What a model's own generation config may say. All else is this config's: a file must not ask for beams, or for code of the hub.
TAKEN = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)
BROKEN = Failure("non_finite", "the language model gives values that are not finite; its weights may be damaged")


@dataclass(frozen=True)
class Asked:
    """Holds the inputs of one text: tensors whose first dimension is of this text alone, and the 64-bit seed of drawn tokens."""

    inputs: Mapping[str, Tensor]
    seed: int

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Return the shapes that texts of one call have in common."""
        return tuple((name, tuple(one.shape), one.dtype) for name, one in sorted(self.inputs.items()))


@dataclass
class Drawn:
    """Draws the next token of each text of a batch: a logits processor of transformers for a greedy search."""

    generators: Sequence[torch.Generator]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores, (B, V), whose greatest is the drawn token."""
        races = [torch.empty(scores.shape[1]).exponential_(generator=one) for one in self.generators]
        return scores.float() - torch.stack(races).to(scores.device).log()


@dataclass
class Watch:
    """Finds the texts of a batch whose logits are not finite: a logits processor of transformers."""

    broken: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores, (B, V), unchanged. Tokens that are forbidden have -inf."""
        wrong = scores.isnan().any(-1) | scores.isposinf().any(-1)
        self.broken = wrong if self.broken is None else self.broken | wrong
        return scores


@dataclass
class TextModel:
    """Holds a loaded language model, and generates texts with it.

    Attributes:
        model: transformers' model.
        decode: Returns the text of tokens, without special ones.
        settings: How it generates.
        pad: The token that fills texts that have ended.
    """

    model: Any
    decode: Callable[[list[int]], str]
    settings: Generation
    pad: int
    _config: Any = field(init=False)

    def __post_init__(self) -> None:
        own = self.model.generation_config
        taken = {name: value for name in TAKEN if (value := getattr(own, name, None)) is not None}
        taken["pad_token_id"] = self.pad
        self._config = transformers.GenerationConfig(
            **taken, do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=self.settings.max_tokens, use_cache=True
        )
        # generate() adds what this config leaves open from that of the model.
        self.model.generation_config = self._config

    def texts(self, asked: Sequence[Asked]) -> list[str | Failure]:
        """Return the texts in the order of what was asked, without spaces around them; or why there is none.

        The caller has the turn of the process (`COMPUTING`).

        Raises:
            FatalError: Memory ran out, or the GPU failed.
        """
        groups: dict[Any, list[int]] = {}
        for number, one in enumerate(asked):
            groups.setdefault(one.shapes, []).append(number)
        found: dict[int, str | Failure] = {}
        for numbers in groups.values():
            for begin in range(0, len(numbers), self.settings.batch):
                some = numbers[begin : begin + self.settings.batch]
                found |= dict(zip(some, self._tried([asked[number] for number in some]), strict=True))
        return [found[number] for number in range(len(asked))]

    def _tried(self, some: Sequence[Asked]) -> list[str | Failure]:
        try:
            return self._generated(some)
        except Exception as error:
            if is_fatal(error):
                raise FatalError(f"{str(error).splitlines()[0]}, while generating text; set batch lower") from error
            if len(some) > 1:  # the fault may be of one text, and each alone is what it is among others
                return [one for asked in some for one in self._tried([asked])]
            return [Failure("render_error", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")]

    def _generated(self, some: Sequence[Asked]) -> list[str | Failure]:
        full = [*some, *[some[-1]] * (self.settings.batch - len(some))]
        device, dtype = self.model.device, self.model.dtype
        inputs = {
            name: (one.to(device, dtype) if one.is_floating_point() else one.to(device))
            for name in some[0].inputs
            for one in (torch.cat([asked.inputs[name] for asked in full]),)
        }
        watch, steps = Watch(), self._steps(full)
        with torch.inference_mode():
            made = self.model.generate(**inputs, logits_processor=transformers.LogitsProcessorList([watch, *steps]))
        given = inputs.get("input_ids")
        width = given.shape[1] if given is not None else 0
        # Models with an encoder do not repeat what they were given.
        if given is not None and torch.equal(made[:, :width], given):
            made = made[:, width:]
        broken = watch.broken.tolist() if watch.broken is not None else [False] * len(full)
        return [
            BROKEN if wrong else self.decode(tokens).strip()
            for _, tokens, wrong in zip(some, made.tolist(), broken, strict=False)  # the copies are thrown away
        ]

    def _steps(self, full: Sequence[Asked]) -> list[Any]:
        """Return the logits processors that draw tokens; none for a greedy search."""
        settings = self.settings
        if not settings.temperature:
            return []
        steps: list[Any] = [transformers.TemperatureLogitsWarper(settings.temperature)]
        steps += [transformers.TopKLogitsWarper(settings.top_k)] if settings.top_k is not None else []
        steps += [transformers.TopPLogitsWarper(settings.top_p)] if settings.top_p is not None and settings.top_p < 1 else []
        return [*steps, Drawn([torch.Generator().manual_seed(one.seed) for one in full])]


def decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """Return the function that makes a text of tokens, without special ones."""
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))


def templated(tokenizer: Any, content: Any) -> str:
    """Return the text that a model is given for a message of a user, by the chat template of a tokenizer or a processor."""
    # Models that think aloud are asked for the answer alone.
    thinking = {"enable_thinking": False} if "enable_thinking" in str(tokenizer.chat_template) else {}
    message = {"role": "user", "content": content}
    return str(tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False, **thinking))


def padding_token(tokenizer: Any, model: Any, source: str) -> int:
    """Return the token that fills texts that have ended: the tokenizer's for padding, else the one by which a text ends."""
    ends = model.generation_config.eos_token_id
    ends = ends[0] if isinstance(ends, list) and ends else ends
    found = next((one for one in (tokenizer.pad_token_id, ends, tokenizer.eos_token_id) if isinstance(one, int)), None)
    if found is None:
        raise ModelError(f"{source}: its tokenizer has no token by which a text ends, and none for padding")
    return found
