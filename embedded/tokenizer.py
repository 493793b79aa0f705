"""Builds the tokenizer of the family: CLIP's byte-level BPE, with merges learned from the words of the world.

Every word of the world is one token. Any other text still encodes, byte by byte if need be. The end-of-text token has the highest
number and pads as well, as in Stable Diffusion's own tokenizer, so pooling by the first highest number finds that token.
"""

from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from promptmill.embedded.world import COLORS, PLACES, SHAPES, SIZES

CONTEXT = 32  # tokens, start and end included; the longest prompt of the world takes 21
START, END = "<|startoftext|>", "<|endoftext|>"
GLUE = ("a", "at", "the", "and", "on", "background")
MERGES = Path(__file__).with_name("merges.txt")
WORDS = (*SIZES, *COLORS, *SHAPES, *PLACES, *GLUE)


def build_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer from its merges.

    The merges were learned once, by BPE over `WORDS`, and are kept beside this module: the learner breaks ties as it likes, so
    learning the merges again could number the tokens differently.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    lines = MERGES.read_text(encoding="utf-8").splitlines()[1:]  # the first line names the format's version
    merges = [tuple(line.split(" ")) for line in lines]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [left + right for left, right in merges]
    tokens = [*list(dict.fromkeys(tokens)), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=END, bos_token=START, eos_token=END, pad_token=END, model_max_length=CONTEXT
    )


def save_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write the tokenizer's files, as `CLIPTokenizer.from_pretrained` and open_clip find them, and return the tokenizer."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    return tokenizer
