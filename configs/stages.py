"""Defines the stages that kept images go through once they are chosen: enlarged, rendered anew, mended, each scored again."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from promptmill.configs.language_models import CAPTIONS, Captions
from promptmill.configs.parameters import (
    MAX_PROMPT,
    MAX_STEPS,
    Closed,
    Guidance,
    Name,
    Scale,
    Scheduler,
    Strength,
    Strict,
    no_boolean,
)
from promptmill.configs.weights import Adapter, OnnxFile, Weights

MAX_STAGES = 8
LEAST_TILE = 64  # pixels
NUMBERS = (
    *("strength", "steps", "guidance_scale", "scale", "tile", "overlap"),
    *("threshold", "most", "grow", "blur", "padding", "fidelity"),
)

Times = Annotated[float, Field(ge=1, le=8, allow_inf_nan=False, description="How many times longer the sides become.")]


class TileControl(Strict):
    """Declares the ControlNet by which a stage holds to the picture that it renders anew, as ControlNet Tile does."""

    type: Name = Field(description="The name of one of the config's ControlNets.")
    scale: Scale = 1.0


class _Stage(Closed):
    """Refuses booleans where numbers are meant, as `Strict` does, which does not go with a key that tells the kind.

    Attributes:
        libraries: Libraries that decide the stage's bytes, beside those of every model.
    """

    libraries: ClassVar[tuple[str, ...]] = ()

    @field_validator(*NUMBERS, mode="before", check_fields=False)
    @classmethod
    def _no_boolean(cls, value: Any) -> Any:
        return no_boolean(value)


class _Rendering(_Stage):
    """Holds the keys of stages that render pictures anew."""

    strength: Strength = Field(0.4, description="The share of the steps that is run.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="The row's where not given.")
    guidance_scale: Guidance | None = Field(None, description="The row's where not given.")
    scheduler: Scheduler | None = Field(None, description="The row's where not given.")

    def sources(self) -> dict[str, tuple[str, Weights]]:
        """Return every set of weights of the stage, by its key: its role in words, and where it comes from."""
        return {}


class Hires(_Rendering):
    """Declares a stage that enlarges a picture by Lanczos and renders the picture anew, by img2img.

    Prompt, seed, LoRAs, references and controls stay those of the row. A mask of the row has no effect here.
    """

    kind: Literal["hires"]
    scale: Times = 2.0
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


class Upscale(_Stage, Adapter):
    """Declares a stage that enlarges a picture by a network of super-resolution, one safetensors file that spandrel reads."""

    libraries: ClassVar[tuple[str, ...]] = ("spandrel",)
    usual: ClassVar[str] = "model.safetensors"
    kind: Literal["upscale"]
    # Only the loaded network says how much it enlarges, and a plan loads none.
    scale: Times = Field(description="To so many times the sides the network's result is brought, by Lanczos where it is another.")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    tile: int = Field(
        256, ge=LEAST_TILE, le=4096, description="The side in pixels of the squares that the network enlarges one by one."
    )
    overlap: int = Field(32, ge=0, description="By how many pixels, at least, they overlap.")

    @model_validator(mode="after")
    def _tiles_overlap(self) -> "Upscale":
        if self.overlap > self.tile // 2:
            raise ValueError(f"overlap {self.overlap} is more than half of the tile's {self.tile} pixels")
        return self

    @property
    def name(self) -> str:
        """Return the stage in a word, as the metadata has it."""
        return f"upscale {self.scale:g}x"

    def sources(self) -> dict[str, tuple[str, Weights]]:
        """Return every set of weights of the stage, by its key: its role in words, and where it comes from."""
        return {"": ("upscaler", self)}


class Detail(_Rendering):
    """Declares a stage that finds things in a picture, and renders each of them anew by inpainting, at the row's size."""

    kind: Literal["detail"]
    detector: Weights = Field(description="A model for object detection in transformers' format.")
    labels: tuple[str, ...] = Field((), description="Which of the detector's labels count; none for all.")
    threshold: float = Field(0.3, ge=0, lt=1, allow_inf_nan=False, description="The score that a thing has to be above.")
    most: int | None = Field(None, ge=1, le=100, description="How many things are rendered at most, the largest.")
    prompt: str | None = Field(None, max_length=MAX_PROMPT, description="The row's where not given.")
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT, description="The row's where not given.")
    grow: int = Field(4, ge=-256, le=256, description="By how many pixels the mask of a thing grows.")
    blur: int = Field(4, ge=0, le=64, description="How many pixels the Gaussian is wide that softens the mask's edge.")
    padding: int = Field(32, ge=0, le=2048, description="How many pixels around the mask are rendered with it.")
    scale: ClassVar[float] = 1.0

    @property
    def name(self) -> str:
        """Return the stage in a word, as the metadata has it."""
        return "detail"

    def sources(self) -> dict[str, tuple[str, Weights]]:
        """Return every set of weights of the stage, by its key: its role in words, and where it comes from."""
        return {"detector": ("detector", self.detector)}


class Faces(_Stage, Adapter):
    """Declares a stage that finds faces and restores each by a network, one safetensors file: GFPGAN, RestoreFormer, CodeFormer."""

    libraries: ClassVar[tuple[str, ...]] = ("spandrel",)
    usual: ClassVar[str] = "model.safetensors"
    kind: Literal["faces"]
    yunet: OnnxFile | None = Field(None, description="YuNet, which finds faces with their eyes, noses and mouths.")
    detector: Weights | None = Field(None, description="In its place, a model for object detection in transformers' format.")
    labels: tuple[str, ...] = Field((), description="Which of the detector's labels are faces; none for all.")
    threshold: float = Field(0.6, ge=0, lt=1, allow_inf_nan=False, description="The score that a face has to be above.")
    most: int | None = Field(None, ge=1, le=100, description="How many faces are restored at most, the largest.")
    fidelity: float = Field(0.5, ge=0, le=1, allow_inf_nan=False, description="CodeFormer's: the more, the more of the face stays.")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    scale: ClassVar[float] = 1.0

    @model_validator(mode="after")
    def _one_finder(self) -> "Faces":
        if (self.yunet is None) == (self.detector is None):
            raise ValueError("faces are found by yunet or by a detector; give one of them")
        if self.labels and self.detector is None:
            raise ValueError("labels are of a detector, and yunet finds faces alone")
        return self

    @property
    def name(self) -> str:
        """Return the stage in a word, as the metadata has it."""
        return "faces"

    def sources(self) -> dict[str, tuple[str, Weights]]:
        """Return every set of weights of the stage, by its key: its role in words, and where it comes from."""
        finder = ("yunet", self.yunet) if self.yunet else ("detector", self.detector)
        assert finder[1] is not None
        return {"": ("restorer of faces", self), finder[0]: ("finder of faces", finder[1])}


AnyStage = Annotated[Hires | Upscale | Faces | Detail, Field(discriminator="kind")]
# Captions are the last stage, though they leave the image as it is.
StageOrCaptions = AnyStage | Captions


def sources_of(stages: Sequence[StageOrCaptions]) -> dict[str, tuple[str, Weights]]:
    """Return every set of weights of some stages, by its place in the config: its role in words, and where it comes from."""
    return {
        ".".join(filter(None, (CAPTIONS if isinstance(stage, Captions) else f"stages.{number}", key))): said
        for number, stage in enumerate(stages)
        for key, said in stage.sources().items()
    }
