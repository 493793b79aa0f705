"""Lists the denoisers that a step cache goes with, by their class, and how their blocks are called: nothing is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

UNET = "UNet2DConditionModel"
Stream = Literal["picture", "text"]


@dataclass(frozen=True)
class Blocks:
    """Says where the blocks of a transformer are.

    Attributes:
        lists: The lists of its blocks, in the order in which they run.
        returns: What a block returns: what it makes of the picture's tokens, and of the text's, in this order.
    """

    lists: tuple[str, ...] = ("transformer_blocks",)
    returns: tuple[Stream, ...] = ("picture",)


# Tokens of the picture go through all of these blocks by themselves, so that first and last block have as many of them.
TRANSFORMERS: Mapping[str, Blocks] = {
    "CogView4Transformer2DModel": Blocks(returns=("picture", "text")),
    "FluxTransformer2DModel": Blocks(("transformer_blocks", "single_transformer_blocks"), ("text", "picture")),
    "PixArtTransformer2DModel": Blocks(),
    "QwenImageTransformer2DModel": Blocks(returns=("text", "picture")),
    "SD3Transformer2DModel": Blocks(returns=("text", "picture")),
    "SanaTransformer2DModel": Blocks(),
}


def is_cacheable(kind: str) -> bool:
    """Return whether a step cache goes with denoisers of a class."""
    return kind == UNET or kind in TRANSFORMERS
