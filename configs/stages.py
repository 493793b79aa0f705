"""Defines the stages that kept images go through once they are chosen: rendered larger, each scored again."""

from typing import Literal

from pydantic import Field, model_validator

from promptmill.configs.parameters import MAX_STEPS, Guidance, Name, Scale, Scheduler, Strength, Strict

MAX_STAGES = 8
LEAST_TILE = 64  # pixels


class TileControl(Strict):
    """Declares the ControlNet by which a stage holds to the picture that it renders anew, as ControlNet Tile does."""

    type: Name = Field(description="The name of one of the config's ControlNets.")
    scale: Scale = 1.0


class Hires(Strict):
    """Declares a stage that enlarges a picture by Lanczos and renders the picture anew, by img2img.

    Prompt, seed, LoRAs, references and controls stay those of the row. A mask of the row has no effect here.
    """

    kind: Literal["hires"]
    scale: float = Field(2.0, ge=1, le=8, allow_inf_nan=False, description="How many times longer the sides become.")
    strength: Strength = Field(0.4, description="The share of the steps that is run.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="The row's where not given.")
    guidance_scale: Guidance | None = Field(None, description="The row's where not given.")
    scheduler: Scheduler | None = Field(None, description="The row's where not given.")
    tile: int | None = Field(
        None,
        ge=LEAST_TILE,
        multiple_of=8,
        description="The side in pixels of squares that are rendered one by one; none: the whole.",
    )
    overlap: int | None = Field(
        None,
        ge=0,
        description="By how many pixels, at least, tiles overlap and fade into each other; a quarter of a tile if not given.",
    )
    control: TileControl | None = Field(None, description="A ControlNet that reads the enlarged picture itself.")

    @model_validator(mode="after")
    def _tiles_overlap(self) -> "Hires":
        if self.overlap is not None and self.tile is None:
            raise ValueError("overlap is of tiles, and tile is not given")
        if self.overlap is not None and self.tile is not None and self.overlap > self.tile // 2:
            raise ValueError(f"overlap {self.overlap} is more than half of the tile's {self.tile} pixels")
        return self

    @property
    def shared(self) -> int:
        """Return by how many pixels neighbouring tiles overlap at least."""
        return (self.tile or 0) // 4 if self.overlap is None else self.overlap

    @property
    def name(self) -> str:
        """Return the stage in a word, as the metadata has it."""
        return f"hires {self.scale:g}x"


AnyStage = Hires
