"""Counts the tokens of prompts that text encoders of CLIP do not read, by their tokenizers' files alone: without torch."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from promptmill.configs.model import Model
from promptmill.pipelines.models.capabilities import INDEX, fetched
from promptmill.pipelines.models.compatibility import config_of
from promptmill.pipelines.work.errors import ModelError

USUAL = 77  # tokens, with one at the beginning and one at the end
LONGEST_KEPT = 64  # characters, of words whose tokens are remembered
# How CLIP divides texts before it joins bytes to tokens (openai/CLIP, clip/simple_tokenizer.py).
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class PromptLengths:
    """Counts tokens by the files of tokenizers, which are read when a prompt is long enough to need them.

    Attributes:
        tokenizers: The files of each tokenizer, and the tokens that its text encoder reads.
    """

    tokenizers: tuple[tuple[tuple[str, ...], int], ...]

    def __call__(self, words: str) -> int:
        """Return how many tokens of a text are not read; of several encoders, by the one that loses most."""
        size = len(words.encode("utf-8", "replace")) + 2  # a token stands for a byte or more
        return max(0, *(_length(files, words) - most for files, most in self.tokenizers if size > most), 0)


def lengths_of(model: Model) -> PromptLengths | None:
    """Return the count of tokens for a model; None where no text encoder of CLIP reads its prompts, or files are missing."""
    index = config_of(model.layout, INDEX) or {}
    found: dict[tuple[str, ...], int] = {}
    for part, kind in index.items():
        if part.startswith("tokenizer") and isinstance(kind, list) and str(kind[-1]).startswith("CLIP"):
            most = (config_of(model.layout, f"{part}/tokenizer_config.json") or {}).get("model_max_length", USUAL)
            files = _files(model, part)
            if files is None:
                return None
            found[files] = min(found.get(files, most), most) if isinstance(most, int) else USUAL
    return PromptLengths(tuple(found.items())) if found else None


def _files(model: Model, part: str) -> tuple[str, ...] | None:
    whole = _file(model, f"{part}/tokenizer.json")
    if whole is not None:
        return (str(whole),)
    vocabulary, merges = _file(model, f"{part}/vocab.json"), _file(model, f"{part}/merges.txt")
    return (str(vocabulary), str(merges)) if vocabulary and merges else None


def _file(model: Model, name: str) -> Path | None:
    try:
        place = fetched(model.layout.source, model.layout.revision, name)
    except ModelError:
        return None
    return place if place.is_file() else None


@lru_cache(maxsize=8)
def _tokenizer(files: tuple[str, ...]) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    if len(files) == 1:
        made = Tokenizer.from_file(files[0])
        made.no_truncation()
        made.no_padding()
        return made
    made = Tokenizer(models.BPE.from_file(*files, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return made


def _length(files: tuple[str, ...], words: str) -> int:
    # CLIP's tokens never reach beyond white space, and manifests repeat their words: so each is counted once.
    return sum((_of_word if len(word) <= LONGEST_KEPT else _of_long_word)(files, word) for word in words.split()) + 2


@lru_cache(maxsize=2**16)  # of fewer, a manifest of 30,000 words is planned at a fifth of the speed
def _of_word(files: tuple[str, ...], word: str) -> int:
    return _of_long_word(files, word)


def _of_long_word(files: tuple[str, ...], word: str) -> int:
    return len(_tokenizer(files).encode(word, add_special_tokens=False).ids)
