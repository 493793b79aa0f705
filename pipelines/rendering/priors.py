"""Makes the embeddings that a decoder is given: a prior denoises them from a prompt, in a pipeline of its own."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# What the output of a prior and the arguments of its decoder have in common.
EMBEDDINGS = ("image_embeds", "negative_image_embeds", "image_embeddings")


@dataclass(frozen=True)
class Prior:
    """Holds a pipeline that denoises the embeddings of images (unCLIP: arXiv:2204.06125; Würstchen: arXiv:2306.00637).

    Attributes:
        pipeline: The pipeline, with text encoders of its own.
        negative_too: Whether the pipeline makes an embedding of each negative prompt as well.
    """

    pipeline: Any
    negative_too: bool

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.pipeline.prior

    def embeddings(self, given: Mapping[str, Any], prompts: Sequence[str], negative: Sequence[str] | None) -> dict[str, Any]:
        """Return the arguments of the decoder that the prior makes, one for each sample.

        Args:
            given: The call's sizes, steps and guidance scale; and its generators, which the decoder goes on with.
            prompts: One for each sample.
            negative: The same, or None where there is none.
        """
        own = copy.copy(self.pipeline)  # a pipeline keeps its scheduler and some of its arguments on itself
        own.scheduler = type(own.scheduler).from_config(own.scheduler.config)
        said = {**given, "prompt": [*prompts]}
        if negative is not None:
            said["negative_prompt"] = [*negative]
            # Each generator makes the noise of two embeddings.
            said["generator"] = [*given["generator"]] * (2 if self.negative_too else 1)
        taken = inspect.signature(own.__call__).parameters
        made = own(**{name: value for name, value in said.items() if name in taken})
        return {name: made[name] for name in EMBEDDINGS if name in made}
