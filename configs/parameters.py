"""Defines the parameters of a request, which a manifest row may override and a config's `defaults` sets: types and ranges."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from promptmill.configs.errors import A_NUMBER, AN_OBJECT, nearest, quoted
from promptmill.configs.keys import forms_of
from promptmill.configs.mask_edits import mask_edit_text, outpaint_text
from promptmill.configs.preprocessors import preprocess_name
from promptmill.configs.schedulers import scheduler_name

MODES = ("txt2img", "img2img", "inpaint", "controlnet", "controlnet_img2img", "controlnet_inpaint")
Mode = Literal["txt2img", "img2img", "inpaint", "controlnet", "controlnet_img2img", "controlnet_inpaint"]

MAX_PROMPT = 10_000  # characters; a text encoder reads some 77 tokens, so anything longer is a mistake
MAX_SIDE = 8192  # pixels
MAX_STEPS = 1000
MAX_CANDIDATES = 10_000
MAX_PATH = 4096  # characters
MAX_DRAWING = 100_000  # characters, of an SVG drawing in the place of a path
DRAWING = ("<svg", "<?xml", "<!--", "<!DOCTYPE svg")  # how an SVG drawing begins
MAX_NAME = 200  # characters, of a ControlNet's type or a LoRA
MAX_LIST = 16  # controls, references or LoRAs of one request
MAX_BOXES = 30  # of one request, as many as GLIGEN reads
MAX_PHRASE = 200  # characters, of what a box holds: a text encoder reads some 77 tokens
PICTURE = "image"  # the type of references that are further pictures of a model that takes several


def path_or_drawing(text: str) -> str:
    """Return a path, or an SVG drawing that a row holds in its place, unchanged.

    Raises:
        ValueError: A path is longer than file systems have, or the drawing is longer than a row may hold.
    """
    most = MAX_DRAWING if text.lstrip().startswith(DRAWING) else MAX_PATH
    if len(text) > most:
        raise ValueError(f"string should have at most {most} characters")
    return text


Scheduler = Annotated[str, AfterValidator(scheduler_name)]
Preprocess = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(preprocess_name)]
Edit = Annotated[str | None, BeforeValidator(mask_edit_text)]
Sides = Annotated[str | None, BeforeValidator(outpaint_text)]
Side = Annotated[int, Field(ge=8, le=MAX_SIDE, multiple_of=8)]
Strength = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Guidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
ImageGuidance = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
NoiseLevel = Annotated[int, Field(ge=0, le=1000)]
Beta = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rescale = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Window = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
ImagePath = Annotated[str, Field(min_length=1), AfterValidator(path_or_drawing)]
Name = Annotated[str, Field(max_length=MAX_NAME)]


class Closed(BaseModel):
    """Refuses unknown keys; the immutable base of every model that a user writes, enough where no number is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=False)


def is_empty(value: Any) -> bool:
    """Return whether a value says nothing; such a value is left out of a plan's fingerprint."""
    return not value


def no_boolean(value: Any) -> Any:
    """Return a value unchanged.

    Raises:
        ValueError: The value is true or false, which Python takes for 1 and 0.
    """
    if isinstance(value, bool):
        raise ValueError("input should not be true or false")
    return value


class Strict(Closed):
    """Refuses booleans where another type is meant; the base of models that have numbers."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and bool not in forms_of(cls.model_fields[info.field_name or ""].annotation):
            return no_boolean(value)
        return value


class Lora(Strict):
    """Names one of the LoRAs that the config declares, and how strongly it is applied."""

    name: Name
    scale: float = Field(1.0, ge=-10, le=10, allow_inf_nan=False)


class Control(Strict):
    """Declares one control image of a request: its ControlNet's type, the image, and how the image steers.

    Attributes:
        type: The name of one of the config's ControlNets.
        image: A path relative to the manifest's folder.
        preprocess: How the control map is made from the image, as `configs.preprocessors` says it; `none` takes the image as the
            map.
        scale: Multiplies the ControlNet's residuals.
        start, end: The share of the denoising steps during which the ControlNet steers, in [0, 1].
    """

    type: Name
    image: ImagePath
    preprocess: Preprocess = "none"
    scale: Scale = 1.0
    start: Window = 0.0
    end: Window = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> "Control":
        if self.start >= self.end:
            raise ValueError(f"start {self.start:g} is not before end {self.end:g}")
        return self


class Reference(Strict):
    """Declares one reference image of a request, whose content or style an adapter brings into the images beside the prompt.

    In models that take several pictures it is a further one, behind the init image, and has neither a scale nor a mask.

    Attributes:
        type: The name of one of the config's adapters, or `PICTURE`.
        image: A path relative to the manifest's folder.
        embedding: The path of a .npy file, the embedding of a face: in place of an image, or beside the picture of the face.
        scale: Multiplies the adapter's share of the cross-attention; 0 is none.
        mask: The path of a picture that is white where the reference acts; None: it acts everywhere.
    """

    type: Name
    image: ImagePath | None = None
    scale: Scale = 1.0
    mask: ImagePath | None = None
    embedding: ImagePath | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Reference":
        if self.image is None and self.embedding is None:
            raise ValueError("needs either an image or, for an adapter of faces, an embedding")
        return self

    @property
    def sources(self) -> dict[str, str]:
        """Return the paths of what the adapter reads, by their keys: an image, an embedding, or both."""
        paths = {"image": self.image, "embedding": self.embedding}
        return {key: path for key, path in paths.items() if path is not None}


class Box(Strict):
    """Declares a box of the image, and the phrase that is drawn there.

    Attributes:
        phrase: What is drawn there, in words.
        x0, y0, x1, y1: The left, the upper, the right and the lower side, as shares of width and height, in [0, 1].
    """

    phrase: str = Field(min_length=1, max_length=MAX_PHRASE)
    x0: Window
    y0: Window
    x1: Window
    y1: Window

    @model_validator(mode="after")
    def _holds_something(self) -> "Box":
        if not self.phrase.strip():
            raise ValueError("its phrase says nothing")
        if self.x0 >= self.x1 or self.y0 >= self.y1:
            axis, first, last = ("x", self.x0, self.x1) if self.x0 >= self.x1 else ("y", self.y0, self.y1)
            raise ValueError(f"{axis}0 {first:g} is not below {axis}1 {last:g}, so that nothing is in the box")
        return self


class Growing(Strict):
    """Declares as many candidates as needed: `start` at first, as many again and again, up to `max`, until the kept reach a score.

    All candidates that the request keeps have to reach `until_score`.
    """

    start: int = Field(ge=1, le=MAX_CANDIDATES)
    max: int = Field(ge=1, le=MAX_CANDIDATES)
    until_score: float = Field(ge=-100, le=100, allow_inf_nan=False)

    @model_validator(mode="after")
    def _grows(self) -> "Growing":
        if self.start >= self.max:
            raise ValueError(f"start {self.start} is not below max {self.max}, so that nothing grows; write a number")
        return self


def _form(value: object) -> str:
    return AN_OBJECT if isinstance(value, dict | Growing) else A_NUMBER


Candidates = Annotated[
    Annotated[int, Field(ge=1, le=MAX_CANDIDATES), Tag(A_NUMBER)] | Annotated[Growing, Tag(AN_OBJECT)], Discriminator(_form)
]


# Defaults and columns that only some families of models take; where the model takes none, the request has none.
FURTHER = (
    "true_cfg_scale",
    "image_guidance_scale",
    "noise_level",
    "prior_steps",
    "prior_guidance_scale",
    "gligen_scheduled_sampling_beta",
)


# Columns that a sweep may give several values.
SWEPT = (
    *("prompt", "negative_prompt", "seed", "width", "height", "steps", "scheduler", "strength", "loras"),
    *("guidance_scale", "guidance_rescale", *FURTHER, "variation_seed", "variation_strength"),
)
MAX_CELLS = 10_000  # of one row's sweep


class Defaults(Strict):
    """Declares the values of every request that does not say otherwise; each key is also a column of the manifest."""

    prompt: str | None = Field(None, max_length=MAX_PROMPT)
    negative_prompt: str = Field("", max_length=MAX_PROMPT)
    mode: Mode | None = None
    width: Side = 512
    height: Side = 512
    steps: int = Field(20, ge=1, le=MAX_STEPS)
    guidance_scale: Guidance = 7.5
    guidance_rescale: Rescale = 0.0
    true_cfg_scale: Guidance | None = None
    image_guidance_scale: ImageGuidance = 1.5
    noise_level: NoiseLevel = 20
    prior_steps: int = Field(25, ge=1, le=MAX_STEPS)
    prior_guidance_scale: Guidance = 4.0
    gligen_scheduled_sampling_beta: Beta = 0.3
    scheduler: Scheduler = "dpmpp_2m"
    strength: Strength = 0.8
    candidates: Candidates = 4
    keep: int = Field(1, ge=1, le=MAX_CANDIDATES)
    loras: tuple[Lora, ...] = Field((), max_length=MAX_LIST)
    sweep: dict[str, tuple[Any, ...]] | None = Field(
        None, exclude_if=is_empty, description="Columns, each with its values: a row becomes one for each combination."
    )

    @model_validator(mode="after")
    def _sweeps_columns(self) -> "Defaults":
        for name, values in (self.sweep or {}).items():
            if name not in SWEPT:
                raise ValueError(f"sweep: {quoted(name)} is no column that can be swept{nearest(name, SWEPT)}")
            if not values:
                raise ValueError(f"sweep.{name}: has no values")
        return self

    @model_validator(mode="after")
    def _keep_what_there_is(self) -> "Defaults":
        most = self.candidates.max if isinstance(self.candidates, Growing) else self.candidates
        if self.keep > most:
            raise ValueError(f"keep {self.keep} is more than candidates {most}")
        return self
