"""Defines how a config names weights: folders and hub repositories at pinned commits, safetensors only."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from promptmill.configs.parameters import Closed, Strict

Revision = Annotated[str | None, Field(pattern=r"^[0-9a-f]{40}$", description="The full commit hash; needed for a hub repository.")]
FOLDER_OR_REPOSITORY = "A local folder, or a hub repository as owner/name."

# How open_clip writes a model that it does not know by name.
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"

SAFETENSORS = ".safetensors"
ONNX = ".onnx"
GGUF = ".gguf"  # weights of fewer bits, without code as well
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
NO_PICKLE = f"only {SAFETENSORS} files are read; pickles can run code"


def _is_none(value: object) -> bool:
    return value is None


def _is_not(value: object) -> bool:
    return not value


def _no_pickle(value: str | None) -> str | None:
    if value is not None and value.endswith(PICKLES):
        raise ValueError(NO_PICKLE)
    return value


def inside_source(value: str | None, what: str = "file") -> str | None:
    """Return a path in a source of weights; raise ValueError where the path leads out of the source."""
    if value is not None and (value.startswith("/") or ".." in value.split("/")):
        raise ValueError(f"a {what} inside the source is meant")
    return value


def is_folder(source: str) -> bool:
    """Return whether a source of weights is a local folder: it begins with a dot or a slash, or is not of the form owner/name."""
    return source.startswith((".", "/")) or source.count("/") != 1


def check_pinned(source: str, revision: str | None) -> None:
    """Raise ValueError where a hub repository has no revision: a repository changes, only a commit of it decides bytes."""
    if not is_folder(source) and revision is None:
        need = "needs a revision, the full commit hash of 40 digits"
        raise ValueError(f"{source} is a hub repository and {need}; a local folder is written ./{source}")


def check_local_file(source: str) -> None:
    """Raise ValueError where a file is named as a hub repository would be, owner/name."""
    if not is_folder(source):
        raise ValueError(f"{source} is the name of a hub repository; a file of this machine is written ./{source}")


def _is_image(value: object) -> bool:
    return value == "image"


class Weights(Closed):
    """Declares where a set of weights comes from."""

    source: str = Field(min_length=1, description=FOLDER_OR_REPOSITORY)
    revision: Revision = None
    variant: str | None = Field(None, description="The files' variant, such as fp16.")

    @model_validator(mode="after")
    def _pinned(self) -> "Weights":
        check_pinned(self.source, self.revision)
        return self


class PartWeights(Weights):
    """Declares a part of a model: a folder in diffusers' format, or one file in the layout of diffusers or of the authors."""

    subfolder: str | None = Field(None, exclude_if=_is_none, description="Where in the source the part lies, such as transformer.")
    weight_name: str | None = Field(
        None, exclude_if=_is_none, description="The one file in the source; a source that is a file itself needs no name."
    )

    @field_validator("source")
    @classmethod
    def _safetensors(cls, value: str) -> str | None:
        return _no_pickle(value)

    @field_validator("subfolder")
    @classmethod
    def _folder_inside(cls, value: str | None) -> str | None:
        return inside_source(value, "folder")

    @field_validator("weight_name")
    @classmethod
    def _file_inside(cls, value: str | None) -> str | None:
        # Not what is known to be a pickle is refused, but all that is not known to be none: diffusers unpickles any other ending.
        if value is not None and not value.endswith((SAFETENSORS, GGUF)):
            raise ValueError(NO_PICKLE)
        return inside_source(value)

    @model_validator(mode="after")
    def _one_place(self) -> "PartWeights":
        if self.source.endswith((SAFETENSORS, GGUF)):
            check_local_file(self.source)
            if self.subfolder or self.weight_name:
                raise ValueError(f"{self.source} is a file, and has neither a subfolder nor a weight_name")
        return self


class ReferenceWeights(PartWeights, Strict):
    """Declares an adapter for references of one type: for pictures, for embeddings of faces, or for both of one face."""

    kind: Literal["image", "face", "face_plus"] = Field(
        "image",
        exclude_if=_is_image,
        description="What the adapter reads: pictures, embeddings of faces (FaceID), or both of one face (FaceID Plus).",
    )
    shortcut_scale: float | None = Field(
        None,
        ge=0,
        le=10,
        allow_inf_nan=False,
        exclude_if=_is_none,
        description="Of FaceID Plus v2: how strongly the picture counts beside the embedding. FaceID Plus has none.",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return dict(value) if type(value) is PartWeights else value

    @model_validator(mode="after")
    def _of_faces(self) -> "ReferenceWeights":
        if self.shortcut_scale is not None and self.kind != "face_plus":
            raise ValueError("shortcut_scale is for FaceID Plus v2; set kind to face_plus, or leave it out")
        return self


class AnnotatorWeights(PartWeights):
    """Declares a model that makes control maps of pictures: a folder in transformers' format, or one safetensors file."""

    detector: PartWeights | None = Field(
        None, exclude_if=_is_none, description="For poses: a detection model of transformers, which finds the persons."
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return dict(value) if type(value) is PartWeights else value


class Layout(Weights):
    """Declares a model in diffusers' format whose configs, tokenizers and scheduler say what the weights in a single file are for.

    Weights of the layout itself are never read.
    """


class ControlNetWeights(Weights, Strict):
    """Declares a model that steers by the control images of one type."""

    mode: int | None = Field(
        None, ge=0, le=99, exclude_if=_is_none, description="The number of the type's mode in a ControlNet that has several modes."
    )
    guess: bool = Field(
        False, exclude_if=_is_not, description="Guess mode: the control steers the guided half alone, the less the finer its level."
    )

    face: str | None = Field(
        None,
        min_length=1,
        exclude_if=_is_none,
        description="A type of references with kind face: the ControlNet reads that face in place of the prompt (InstantID).",
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return dict(value) if type(value) is Weights else value


class RefinerWeights(Weights, Strict):
    """Declares a model in diffusers' format that takes the last steps of each image, and the step at which it begins."""

    switch: float = Field(0.8, gt=0, lt=1, description="The share of the trained timesteps, from noise on, that is the base's.")


class Adapter(Weights):
    """Declares weights that are one file and are put on top of a model."""

    usual: ClassVar[str]
    weight_name: str | None = Field(None, description="The file in the folder or repository; needed where it holds several.")

    @property
    def file(self) -> str:
        """Return the name of the file, where it is not alone in its folder."""
        return self.weight_name or self.usual

    @field_validator("source")
    @classmethod
    def _no_pickle(cls, value: str) -> str | None:
        return _no_pickle(value)

    @field_validator("weight_name")
    @classmethod
    def _safetensors(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith(SAFETENSORS):
            raise ValueError(NO_PICKLE)
        return inside_source(value)


class OnnxFile(Weights):
    """Declares a network in one ONNX file of this machine."""

    @field_validator("source")
    @classmethod
    def _is_onnx(cls, value: str) -> str:
        if not value.endswith(ONNX):
            raise ValueError(f"a file that ends in {ONNX} is meant")
        check_local_file(value)
        return value


class OpenClip(Closed):
    """Declares an open_clip model, as open_clip names it."""

    model: str = Field(min_length=1, description="An open_clip model: by name, as local-dir:FOLDER, or as hf-hub:owner/name.")
    pretrained: str | None = Field(None, description="The open_clip tag of the weights; for a model given by name.")
    revision: Annotated[
        str | None,
        Field(pattern=r"^[0-9a-f]{40}$", description="The full commit hash; needed for hf-hub:, and pins the weights of a tag."),
    ] = None

    @model_validator(mode="after")
    def _complete(self) -> "OpenClip":
        schema = next((schema for schema in (LOCAL_DIR, HF_HUB) if self.model.startswith(schema)), None)
        place = self.model.removeprefix(schema or "")
        if schema is None and place.startswith((".", "/")):
            raise ValueError(f"model {place} is a folder, which is written {LOCAL_DIR}{place}")
        if schema is None and self.pretrained is None:
            raise ValueError(f"model {place} needs pretrained, the open_clip tag of its weights")
        if schema is not None and self.pretrained is not None:
            raise ValueError(f"pretrained {self.pretrained} is for a model given by name; {schema} brings its own weights")
        if schema == LOCAL_DIR and not place:
            raise ValueError(f"model {LOCAL_DIR} names no folder")
        if schema == LOCAL_DIR and self.revision is not None:
            raise ValueError(f"revision is for what lies on the hub; {self.model} is a local folder")
        if schema == HF_HUB and is_folder(place):
            raise ValueError(f"model {self.model} is not of the form {HF_HUB}owner/name; a folder is written {LOCAL_DIR}{place}")
        if schema == HF_HUB and self.revision is None:
            raise ValueError(f"{self.model} is a hub repository and needs a revision, the full commit hash of 40 digits")
        return self
