"""Defines the language models that caption kept images and rewrite prompts, and how these models generate text."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from promptmill.configs.parameters import MAX_PROMPT, Strict
from promptmill.configs.weights import Weights

CAPTIONS = "captions"  # the key of the config, and the stage's name in errors
PLACE = "{prompt}"  # stands in an instruction where the prompt goes

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
