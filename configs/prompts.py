"""Defines how prompts are read: which syntax they are written in, how templates expand, and how long texts are encoded."""

from typing import Literal

from pydantic import Field, model_validator

from promptmill.configs.language_models import Rewriting
from promptmill.configs.parameters import Strict, is_empty

PLAIN, A1111 = "plain", "a1111"
Syntax = Literal["plain", "a1111"]


class Prompts(Strict):
    """Declares how prompts are read; without it a prompt is words alone, of which each text encoder reads the beginning."""

    syntax: Syntax = Field("plain", description="What prompts of rows without a column syntax are written in: docs/prompts.md.")
    expand: Literal["random", "combinatorial"] = Field(
        "random", description="One prompt of a template, chosen by the row's seed, or a row for each that the template can make."
    )
    wildcards: str | None = Field(None, min_length=1, description="The folder with the text files that __wildcards__ name.")
    long: bool = Field(False, description="Encode prompts that are longer than a CLIP text encoder reads in several chunks.")
    rewrite: Rewriting | None = Field(
        None, exclude_if=is_empty, description="What prompts are rewritten by, before anything is planned: docs/language_models.md."
    )

    @model_validator(mode="after")
    def _plain_where_rewritten(self) -> "Prompts":
        if self.rewrite is not None and self.syntax != "plain":
            raise ValueError(f"rewrite is for plain prompts, and a model knows no syntax of {self.syntax}; leave one of them out")
        return self
