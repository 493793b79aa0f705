"""Rewrites prompts by causal language models of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from promptmill.configs.language_models import Rewriting
from promptmill.pipelines.rendering.generating_text import Asked, TextModel, decoder, padding_token, templated
from promptmill.pipelines.rendering.libraries import transformers
from promptmill.pipelines.rendering.transformers_loading import load_beside, load_model
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.results import Failure
from promptmill.pipelines.work.turns import COMPUTING

STEP = 64  # tokens; what a model is given is padded on its left to a multiple of so many, so that many prompts share a shape


@dataclass(frozen=True)
class Rewriter:
    """Holds a loaded causal language model, and rewrites prompts with it.

    Attributes:
        model: The model, which generates the text.
        tokenizer: transformers' tokenizer of the model.
        settings: What the config says of rewriting.
        threads: CPU threads that compute.
    """

    model: TextModel
    tokenizer: Any
    settings: Rewriting
    threads: int = 1

    def rewritten(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str | Failure]:
        """Return the prompts as the model has rewritten them, each in one line, which may be empty; or why there is none.

        A text depends on its prompt, its seed and the config alone.

        Args:
            prompts: The prompts.
            seeds: By which the tokens of each text are drawn, where they are.

        Raises:
            FatalError: Memory ran out, or the GPU failed.
        """
        asked = [self.asked(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        with COMPUTING:
            torch.set_num_threads(self.threads)
            written = iter(self.model.texts([one for one in asked if isinstance(one, Asked)]))
        made = [next(written) if isinstance(one, Asked) else one for one in asked]
        return [one if isinstance(one, Failure) else " ".join(one.split()) for one in made]

    def close(self) -> None:
        """Give the memory of the model back; the rewriter is of no use afterwards."""
        on_gpu = self.model.model.device.type == "cuda"
        del self.model.model
        if on_gpu:
            torch.cuda.empty_cache()

    def asked(self, prompt: str, seed: int) -> Asked | Failure:
        """Return the inputs of the model for a prompt, padded on their left; or why the model cannot take the prompt."""
        message = self.settings.message(prompt)
        try:
            chat = bool(getattr(self.tokenizer, "chat_template", None))
            text = templated(self.tokenizer, message) if chat else message
            # A template writes the special tokens itself.
            tokens = list(self.tokenizer(text, add_special_tokens=not chat)["input_ids"])
        except Exception as error:  # of a template or a tokenizer
            return Failure("render_error", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        most = getattr(self.model.model.config, "max_position_embeddings", None)
        if not tokens or (isinstance(most, int) and len(tokens) + self.settings.max_tokens > most):
            what = f"{len(tokens):,} tokens with the instruction, and {self.settings.max_tokens:,} may follow"
            return Failure("render_error", f"is of {what}, where the model reads 1 to {most:,}" if tokens else "is of no tokens")
        empty = -len(tokens) % STEP
        inputs = {
            "input_ids": torch.tensor([[self.model.pad] * empty + tokens]),
            "attention_mask": torch.tensor([[0] * empty + [1] * len(tokens)]),
        }
        return Asked(inputs, seed)


def load_rewriter(rewriting: Rewriting, device: torch.device, threads: int = 1) -> Rewriter:
    """Load a causal language model with its tokenizer, from safetensors alone and without code of its own.

    Args:
        rewriting: What the config says of rewriting.
        device: The device of the model.
        threads: CPU threads that compute.

    Raises:
        ModelError: One line on what cannot be loaded, or what the model lacks.
    """
    weights, auto = rewriting.model, transformers.AutoModelForCausalLM
    model = load_model(auto, weights, getattr(torch, rewriting.dtype), device, "writing text")
    if model.config.is_encoder_decoder:
        raise ModelError(f"{weights.source}: is no causal language model, but one with an encoder and a decoder")
    tokenizer = load_beside(transformers.AutoTokenizer, weights, "tokenizer")
    words = TextModel(model, decoder(tokenizer), rewriting, padding_token(tokenizer, model, weights.source))
    return Rewriter(words, tokenizer, rewriting, threads)
