"""The tokenizer of the family: CLIP's byte-level BPE, with merges learned from the words of the world.

Every word of the world is one token; any other text still encodes, byte by byte if need be. The end-of-text token has the
highest number and pads as well, as in Stable Diffusion's own tokenizer, so pooling by the first highest number finds it.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from embedded.world import COLORS, PLACES, SHAPES, SIZES

CONTEXT = 32  # tokens, start and end included; the longest prompt of the world takes 21
START, END = "<|startoftext|>", "<|endoftext|>"
GLUE = ("a", "at", "the", "and", "on", "background")
WORDS = (*SIZES, *COLORS, *SHAPES, *PLACES, *GLUE)


def build_tokenizer() -> CLIPTokenizer:
    """Learn the merges and return the tokenizer; no randomness is involved."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator(
        sorted(WORDS) * 4,
        trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False),
    )
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [left + right for left, right in merges]
    tokens = [*list(dict.fromkeys(tokens)), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=END, bos_token=START, eos_token=END, pad_token=END, model_max_length=CONTEXT
    )


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer where `CLIPTokenizer.from_pretrained` and open_clip find it."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer
