"""Defines the scorers of candidates beside CLIP, and when two candidates are too much alike."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from promptmill.configs.parameters import Closed, Strict, no_boolean
from promptmill.configs.weights import Adapter, OpenClip, Weights

CLIP = "clip"  # the ranking's own model, where scorers are named
# Names whose columns, NAME_score, are or may be promptmill's own.
RESERVED = frozenset({CLIP, "rank", "draft"})

Limit = Annotated[float | None, Field(allow_inf_nan=False), BeforeValidator(no_boolean)]


class _Scorer(Closed):
    """Holds the keys of every scorer: its name, by which its column is called, and the scores that a kept image may have."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$", description="Its column is NAME_score.")
    floor: Limit = Field(None, description="The score that a kept image reaches.")
    ceiling: Limit = Field(None, description="The score that no kept image exceeds.")

    @model_validator(mode="after")
    def _ordered(self) -> "_Scorer":
        if self.name in RESERVED:
            raise ValueError(f"name {self.name} is promptmill's own; take another")
        if self.floor is not None and self.ceiling is not None and self.floor > self.ceiling:
            raise ValueError(f"floor {self.floor:g} is above ceiling {self.ceiling:g}, so no image could be kept")
        return self


class OpenClipScorer(_Scorer, OpenClip):
    """Declares another open_clip model: 100 x cosine of prompt and image."""

    kind: Literal["open_clip"]


class PreferenceScorer(_Scorer, Weights):
    """Declares a CLIP model of transformers that was trained on what people prefer: its logit scale x cosine, as in PickScore."""

    kind: Literal["preference"]


class HeadScorer(_Scorer, Adapter):
    """Declares a small network on an image embedding, one safetensors file: linear layers, or the concepts of a safety checker."""

    usual: ClassVar[str] = "model.safetensors"
    kind: Literal["head"]
    # Not `on`, which is what YAML calls true.
    reads: str = Field(CLIP, description="Whose image embedding it is on: clip, or a scorer of kind open_clip or preference.")
    activation: Literal["none", "relu"] = Field("none", description="Between its linear layers.")
    output: Literal["none", "sigmoid"] = Field("none", description="After the last of them.")


AnyScorer = Annotated[OpenClipScorer | PreferenceScorer | HeadScorer, Field(discriminator="kind")]


class Diversity(Strict):
    """Declares when candidates of one request are nearly the same, of which only the best is kept; either sign is enough."""

    embedding: float | None = Field(
        None, ge=-1, lt=1, allow_inf_nan=False, description="The cosine of CLIP embeddings that two kept images do not exceed."
    )
    hash: int | None = Field(
        None, ge=0, le=31, description="Images whose 64-bit perceptual hashes differ in at most so many bits are one."
    )

    @model_validator(mode="after")
    def _says_something(self) -> "Diversity":
        if self.embedding is None and self.hash is None:
            raise ValueError("needs embedding or hash, or both")
        return self
