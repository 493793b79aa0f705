"""Lists what the pipelines of a family take differently from those of Stable Diffusion: one entry a family."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """Says how the pipelines of a family are called.

    Attributes:
        rows: Rows of the denoiser's batch that a candidate with guidance takes at a time: 1 where positive and negative prompt go
            through the denoiser one after the other, or where guidance is an input of the model.
        guidance: The argument that takes a row's guidance scale; None where the family has no guidance.
        unguided: The largest guidance scale that means no guidance.
        negative: Whether negative prompts have an effect, at a guidance scale above 1.
        empty_negative: Whether guidance needs a negative prompt, be it an empty one.
        prompts_apart: Whether a call pads its texts to the longest of them, so that texts in one call depend on each other.
        always: Arguments that every call is given.
    """

    rows: int = 2
    guidance: str | None = "guidance_scale"
    unguided: float = 1.0
    negative: bool = True
    empty_negative: bool = False
    prompts_apart: bool = False
    always: Mapping[str, Any] = field(default_factory=dict)


# By what the names of the family's pipeline classes begin with; of several that fit, the longest.
FAMILIES: dict[str, Family] = {
    "AuraFlow": Family(),
    "Chroma": Family(rows=1, prompts_apart=True),
    "CogView4": Family(rows=1, prompts_apart=True),
    "Flux": Family(rows=1, negative=False),
    "HunyuanDiT": Family(always={"use_resolution_binning": False}),
    "Lumina": Family(prompts_apart=True),
    "Lumina2": Family(rows=1, prompts_apart=True),
    "PixArt": Family(always={"use_resolution_binning": False}),
    "QwenImage": Family(rows=1, guidance="true_cfg_scale", empty_negative=True, prompts_apart=True),
    "Sana": Family(always={"use_resolution_binning": False}),
    "StableDiffusion": Family(),
    "ZImage": Family(unguided=0.0, prompts_apart=True),
}
OTHER = Family(prompts_apart=True)


def family_of(pipeline: str) -> Family:
    """Return the family of a pipeline class by the class's name; a family that is not listed is called like Stable Diffusion's."""
    fitting = [begin for begin in FAMILIES if pipeline.startswith(begin)]
    return FAMILIES[max(fitting, key=len)] if fitting else OTHER
