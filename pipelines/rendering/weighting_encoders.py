"""Encodes texts with weights through compel, whose import takes seconds: only models whose rows need compel import this module."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from compel import Compel, EmbeddingsProvider, ReturnedEmbeddingsType

from promptmill.manifests.a1111_prompts import Fragments, Part

LONGEST_T5 = 512  # tokens, which diffusers gives the T5 encoder of Flux

NOTHING: Fragments = (("", 1.0),)

# Embeddings of a text: for each token (1, tokens, width), and pooled (1, width) where the family takes such.
Embeddings = tuple[torch.Tensor, torch.Tensor | None]


class _Skipping(EmbeddingsProvider):
    """Encodes by a layer before the last ones, as diffusers does with a clip skip, counted as diffusers counts."""

    skip: int
    is_normed: bool

    def _encode_token_ids_to_embeddings(self, token_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        said = self.text_encoder(token_ids, attention_mask, output_hidden_states=True, return_dict=True)
        if not self.is_normed:
            return said.hidden_states[-(self.skip + 2)]
        encoder: Any = self.text_encoder
        norm = getattr(encoder, "text_model", encoder).final_layer_norm
        return norm(said.hidden_states[-(self.skip + 1)])


class _Inversions:
    """Tells compel the tokens of textual inversions with several vectors, as diffusers writes them out.

    Args:
        tokenizer: A tokenizer, to which the inversions' tokens were added.
    """

    def __init__(self, tokenizer: Any):
        added: dict[str, int] = tokenizer.get_added_vocab()
        self._further: dict[int, list[int]] = {}
        for token, number in added.items():
            further: list[int] = []
            while (name := f"{token}_{len(further) + 1}") in added:
                further.append(added[name])
            if further:
                self._further[number] = further

    def expand_textual_inversion_token_ids_if_necessary(self, token_ids: list[int]) -> list[int]:
        """Return tokens, each of an inversion followed by the tokens of its further vectors."""
        return [one for token in token_ids for one in (token, *self._further.get(token, ()))]


@dataclass(frozen=True)
class Encoders:
    """Holds the text encoders of a pipeline as compel uses them.

    Attributes:
        providers: Those whose embeddings stand beside each other for each token.
        pooling: The provider of pooled embeddings; None where the family takes none.
    """

    providers: tuple[EmbeddingsProvider, ...]
    pooling: EmbeddingsProvider | None

    def embedded(self, parts: Sequence[Part]) -> Embeddings:
        """Return the embeddings of the parts of a prompt, one behind another, with their chunks one behind another."""
        sides = [_side(provider, parts) for provider in self.providers]
        longest = max(side.shape[1] for side in sides)
        words = " ".join(part.words for part in parts)
        pooled = self.pooling.get_pooled_embeddings([words], device=self.pooling.device) if self.pooling else None
        return self._joined(sides, longest), pooled

    def to_length(self, embeddings: torch.Tensor, length: int) -> torch.Tensor:
        """Return embeddings with those of no text behind them, up to a length."""
        if embeddings.shape[1] == length:
            return embeddings
        widths = [one.text_encoder.config.hidden_size for one in self.providers]
        return self._joined(embeddings.split(widths, dim=-1), length)

    def _joined(self, sides: Sequence[torch.Tensor], length: int) -> torch.Tensor:
        pairs = zip(sides, self.providers, strict=True)
        return torch.cat([_padded(side, provider, length) for side, provider in pairs], dim=-1)


def _side(provider: EmbeddingsProvider, parts: Sequence[Part]) -> torch.Tensor:
    made = []
    for part in parts:
        whole = torch.cat([_encoded(provider, fragments or NOTHING) for fragments in part.chunks], dim=1)
        if part.weight != 1.0:
            nothing = _padded(_encoded(provider, NOTHING), provider, whole.shape[1])
            whole = nothing + (whole - nothing) * part.weight
        made.append(whole)
    return torch.cat(made, dim=1)


def _encoded(provider: EmbeddingsProvider, fragments: Fragments) -> torch.Tensor:
    texts, weights = [text for text, _ in fragments], [weight for _, weight in fragments]
    return provider.get_embeddings_for_weighted_prompt_fragments([texts], [weights], device=provider.device)


def _padded(embeddings: torch.Tensor, provider: EmbeddingsProvider, length: int) -> torch.Tensor:
    if embeddings.shape[1] == length:
        return embeddings
    longest = embeddings.new_zeros(1, length, embeddings.shape[2])
    padded: torch.Tensor = Compel._pad_conditioning_tensors_to_same_length([embeddings, longest], _encoded(provider, NOTHING))[0]
    return padded


def encoders_of(base: Any, weighting: str, clip_skip: int, is_long: bool, device: torch.device) -> Encoders:
    """Return the text encoders of a pipeline as compel uses them.

    Args:
        base: A pipeline.
        weighting: `Family.weighting`.
        clip_skip: Layers of the text encoders left out at their end.
        is_long: Whether long texts are read in chunks.
        device: Where the embeddings are made.
    """
    pairs = text_encoders(base)
    for tokenizer, _ in pairs:
        # Long texts are divided or cut afterwards, which needs no warning.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    last, before_last, pooled = (
        ReturnedEmbeddingsType.LAST_HIDDEN_STATES_NORMALIZED,
        ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        ReturnedEmbeddingsType.POOLED,
    )
    if weighting == "t5":
        (clip, clip_encoder), (t5, t5_encoder) = pairs
        most = min(LONGEST_T5, t5.model_max_length)
        long_one = EmbeddingsProvider(t5, t5_encoder, truncate=True, device=device, model_max_length=most)
        return Encoders(
            (long_one,), EmbeddingsProvider(clip, clip_encoder, _Inversions(clip), returned_embeddings_type=pooled, device=device)
        )
    kind = before_last if base.components.get("text_encoder_2") is not None else last
    providers = []
    for tokenizer, encoder in pairs:
        made = (_Skipping if clip_skip else EmbeddingsProvider)(
            tokenizer, encoder, _Inversions(tokenizer), truncate=not is_long, returned_embeddings_type=kind, device=device
        )
        if isinstance(made, _Skipping):
            made.skip, made.is_normed = clip_skip, kind is last
        providers.append(made)
    return Encoders(tuple(providers), providers[-1] if kind is before_last else None)


def text_encoders(base: Any) -> list[tuple[Any, Any]]:
    """Return the tokenizers and text encoders of a pipeline that it has, in pairs."""
    parts = base.components
    pairs = [(parts.get(f"tokenizer{end}"), parts.get(f"text_encoder{end}")) for end in ("", "_2")]
    return [(tokenizer, encoder) for tokenizer, encoder in pairs if tokenizer is not None and encoder is not None]
