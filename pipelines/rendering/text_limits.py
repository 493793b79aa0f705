"""Counts the tokens of prompts that a pipeline's text encoders do not read: each pipeline cuts texts in its own way, in silence."""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

KANDINSKY3 = 128  # which its pipelines write out
HIDREAM_CLIP = 218  # the most that its pipelines give encoders of CLIP


@dataclass(frozen=True)
class Limit:
    """Holds how many tokens a text encoder is given.

    Attributes:
        tokenizer: Makes the tokens.
        most: Tokens that the encoder is given.
        count: Counts the tokens of a prompt where a template is written around the prompt; None: the tokenizer does.
    """

    tokenizer: Any
    most: int
    count: Callable[[str], int] | None = None

    def lost(self, prompt: str) -> int:
        """Return how many tokens of a prompt are left out."""
        return max(0, (self.count or partial(_length, self.tokenizer))(prompt) - self.most)


class Tokenizers:
    """Holds the tokenizers of pipelines, each with the most tokens that its text encoder is given."""

    def __init__(self, *pipelines: Any):
        self.limits = [limit for pipeline in pipelines for limit in _limits(pipeline)]

    def lost(self, prompt: str) -> int:
        """Return how many tokens of a prompt a text encoder does not read; of several, the one that loses most."""
        return max((limit.lost(prompt) for limit in self.limits), default=0)


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, truncation=False, verbose=False).input_ids)


def _limits(base: Any) -> Iterator[Limit]:
    usual = _usual(base)
    for name, part in base.components.items():
        if name.startswith("tokenizer") and callable(part):
            if not hasattr(part, "model_max_length"):
                part = part.tokenizer  # of a processor, which reads pictures, too
            # The parameter is for the encoders of long texts; CLIP's have a length of their own.
            is_long = not type(part).__name__.startswith("CLIP") and usual is not None
            limit = Limit(part, usual if is_long and usual is not None else part.model_max_length)
            if (own := _own(base, name, limit, usual or 0)) is not None:
                yield own


def _usual(base: Any) -> int | None:
    """Return the tokens that a pipeline gives encoders of long texts, by its parameter's default, or else by its attribute."""
    parameters = inspect.signature(type(base).__call__).parameters
    said = parameters["max_sequence_length"].default if "max_sequence_length" in parameters else None
    said = said if isinstance(said, int) else getattr(base, "tokenizer_max_length", None)
    return said if isinstance(said, int) else None


def _own(base: Any, name: str, limit: Limit, usual: int) -> Limit | None:
    """Return a tokenizer's limit as the pipeline's own code has it; None where the encoder reads no whole prompts."""
    kind, tokenizer = type(base).__name__, limit.tokenizer
    if kind.startswith("Kandinsky3"):
        return replace(limit, most=KANDINSKY3)
    if kind.startswith("HiDream") and type(tokenizer).__name__.startswith("CLIP"):
        return replace(limit, most=min(usual, HIDREAM_CLIP))
    if kind.startswith("HunyuanImage") and name == "tokenizer_2":
        return None  # reads what a prompt has in quotes
    if kind.startswith("PRXPixel"):
        return replace(limit, most=base.config.prompt_max_tokens)
    if kind.startswith("Sana"):
        return replace(limit, most=usual - 1)  # the instruction before the prompt is counted with one token too many
    if kind.startswith("Krea2"):
        return replace(limit, most=usual - base.prompt_template_encode_num_suffix_tokens)
    if kind.startswith("Lumina2"):
        return replace(limit, count=lambda text: _length(tokenizer, f"{base.system_prompt} <Prompt Start> {text}"))
    if kind.startswith("Flux2Klein"):
        return replace(limit, count=partial(_chatted, tokenizer, False))
    if kind.startswith("ZImage"):
        return replace(limit, count=partial(_chatted, tokenizer, True))
    if kind.startswith("Flux2"):
        return replace(limit, count=partial(_instructed, base, tokenizer))
    return limit


def _chatted(tokenizer: Any, thinking: bool, text: str) -> int:
    messages = [{"role": "user", "content": text}]
    written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    return _length(tokenizer, _up_to(written, text))


def _instructed(base: Any, tokenizer: Any, text: str) -> int:
    messages = sys.modules[type(base).__module__].format_input(prompts=[text], system_message=base.system_message)
    written = base.tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)[0]
    return len(tokenizer(_up_to(written, text), truncation=False, verbose=False, add_special_tokens=False).input_ids)


def _up_to(written: str, text: str) -> str:
    """Return a template around a prompt up to the prompt's end: of the rest nothing is missed."""
    return written[: written.rindex(text) + len(text)] if text in written else written
