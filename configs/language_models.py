"""Defines the language models that caption kept images and rewrite prompts, and how these models generate text."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from promptmill.configs.parameters import MAX_PROMPT, Strict
from promptmill.configs.weights import Weights

CAPTIONS = "captions"  # the key of the config, and the stage's name in errors
PLACE = "{prompt}"  # stands in an instruction where the prompt goes
ORIGINAL = "original_prompt"  # the column of a rewritten prompt as the manifest has it

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Generation(Strict):
    """Declares a language model of transformers, and how it generates text: greedily, unless a temperature is given."""

    model: Weights = Field(description="A model in transformers' format, with its tokenizer or its processor.")
    max_tokens: int = Field(128, ge=1, le=4096, description="Where a text ends at the latest, in the model's tokens.")
    temperature: float = Field(
        0.0,
        ge=0,
        le=100,
        allow_inf_nan=False,
        description="0 takes the most probable token each time; more draws tokens, by each row's own seed.",
    )
    top_k: int | None = Field(None, ge=1, le=1_000_000, description="Tokens are drawn from so many of the most probable ones.")
    top_p: Share | None = Field(None, description="Tokens are drawn from the most probable ones that have this share together.")
    batch: int = Field(8, ge=1, le=1024, description="Texts that are generated at a time; part of what decides the bytes.")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _draws(self) -> "Generation":
        given = [name for name in ("top_k", "top_p") if getattr(self, name) is not None]
        if given and not self.temperature:
            raise ValueError(f"{given[0]} is for drawn tokens; set temperature, or leave {given[0]} out")
        return self


class Captions(Generation):
    """Declares the model that writes a caption of each kept image, once the image has gone through all stages."""

    libraries: ClassVar[tuple[str, ...]] = ()
    scale: ClassVar[float] = 1.0  # as a stage that leaves the size of images as it is
    name: ClassVar[str] = CAPTIONS

    prompt: str = Field(
        "", max_length=MAX_PROMPT, description="What the model is asked beside the image, such as <CAPTION> for Florence-2."
    )

    def sources(self) -> dict[str, tuple[str, Weights]]:
        """Return the weights, by their key: their role in words, and where they come from."""
        return {"model": ("writer of captions", self.model)}


class Rewriting(Generation):
    """Declares the model that rewrites prompts before anything is planned, and what the model is told."""

    instruction: str = Field(
        min_length=1,
        max_length=MAX_PROMPT,
        description=f"What the model is told; {PLACE} in it is the row's prompt, which otherwise follows it.",
    )

    @field_validator("instruction")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("says nothing; say how prompts are to be rewritten")
        return value

    def message(self, prompt: str) -> str:
        """Return the text that the model is given for a prompt."""
        return self.instruction.replace(PLACE, prompt) if PLACE in self.instruction else f"{self.instruction}\n\n{prompt}"

    def sources(self) -> dict[str, tuple[str, Weights]]:
        """Return the weights, by their place in the config: their role in words, and where they come from."""
        return {"prompts.rewrite.model": ("rewriter of prompts", self.model)}
