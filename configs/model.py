"""Defines the diffusion model of a config: its base, the weights that are put on top of the base, and how it is computed."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from promptmill.configs.errors import nearest, quoted
from promptmill.configs.parameters import Strict, is_empty
from promptmill.configs.preprocessors import ANNOTATORS, OF_FILES
from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.configs.step_caches import StepCache
from promptmill.configs.weights import (
    FOLDER_OR_REPOSITORY,
    GGUF,
    NO_PICKLE,
    PICKLES,
    SAFETENSORS,
    Adapter,
    AnnotatorWeights,
    ControlNetWeights,
    Layout,
    PartWeights,
    ReferenceWeights,
    RefinerWeights,
    Revision,
    Weights,
    check_local_file,
    check_pinned,
    inside_source,
)


def _sets_nothing(value: Any) -> bool:
    return not value.given


class LoraWeights(Adapter):
    """Declares a LoRA that requests may use by its name."""

    usual = "pytorch_lora_weights.safetensors"
    name: str = Field(min_length=1)


class TextualInversion(Adapter):
    """Declares an embedding that prompts may use by its token."""

    usual = "learned_embeds.safetensors"
    token: str = Field(min_length=1)


class Kernels(Strict):
    """Declares how the denoiser is computed. Each switch changes speed, and with it the last bits of the pixels."""

    attention: Literal["sdpa", "plain"] = Field("sdpa", description="Fused attention, or attention step by step.")
    channels_last: bool = Field(False, description="Weights and activations with the channels innermost.")
    compile: bool = Field(False, description="Each repeated block compiled at fixed shapes; minutes once a process, then faster.")
    merge_loras: bool = Field(
        False,
        exclude_if=is_empty,
        description="LoRAs are merged into the weights where requests change them, and cost nothing at each step.",
    )
    fp8: bool = Field(False, description="Linear layers of the blocks in FP8, scaled row by row; needs torchao and a recent GPU.")
    cache: StepCache | None = Field(
        None,
        exclude_if=is_empty,
        description="Some steps run the outer blocks alone, with what the inner blocks made at an earlier step.",
    )


class Model(Strict):
    """Declares the diffusion model: any base that diffusers' AutoPipeline classes load, and the weights put on top of the base."""

    base: str = Field(min_length=1, description=FOLDER_OR_REPOSITORY)
    revision: Revision = None
    variant: str | None = Field(None, description="The files' variant, such as fp16.")
    # Left out where they are not given, so that they change no fingerprint of a plan without them.
    base_file: str | None = Field(
        None, exclude_if=is_empty, description="The one safetensors file of the base that is the model, in its authors' layout."
    )
    base_config: Layout | None = Field(
        None,
        exclude_if=is_empty,
        description="For a base that is a single file: a model in diffusers' format with the same parts, whose configs are taken.",
    )
    # Left out where it is not given, so that it changes no fingerprint of a plan without it.
    denoiser: PartWeights | None = Field(
        None, exclude_if=is_empty, description="A UNet or transformer in place of the base's: a fine-tune, a distillation."
    )
    vae: Weights | None = None
    refiner: RefinerWeights | None = Field(
        None, exclude_if=is_empty, description="SDXL's refiner, which takes over from the base at a share of the steps."
    )
    prior: Weights | None = Field(
        None,
        exclude_if=is_empty,
        description="What makes of a prompt the embedding that the base decodes: for Kandinsky 2 and Stable Cascade.",
    )
    controlnets: dict[str, ControlNetWeights] = Field(
        default_factory=dict, description="ControlNets by the type that requests name."
    )
    references: dict[str, ReferenceWeights] = Field(
        default_factory=dict,
        exclude_if=is_empty,
        description="Adapters for reference images (IP-Adapters; Redux), by the type that requests name.",
    )
    image_encoder: PartWeights | None = Field(
        None,
        exclude_if=is_empty,
        description="What reads reference images, for all adapters; image_encoder beside the first adapter where not given.",
    )
    annotators: dict[str, AnnotatorWeights] = Field(
        default_factory=dict,
        exclude_if=is_empty,
        description="Models that make control maps of pictures, by name: depth, seg, sam, pose, softedge, lineart.",
    )
    loras: tuple[LoraWeights, ...] = ()
    textual_inversions: tuple[TextualInversion, ...] = ()
    scheduler_options: SchedulerOptions = Field(
        default_factory=SchedulerOptions,
        exclude_if=_sets_nothing,
        description="Options of the schedulers of all rows, in place of those that the model was saved with.",
    )
    clip_skip: Annotated[int, Field(ge=0, le=24)] = 0
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    safety_checker: bool = Field(
        False, description="Run the model's own checker; a hit is an outcome of its own, never a black image."
    )
    batch: int = Field(8, ge=1, le=1024, description="Candidates a denoising batch; part of what decides the bytes.")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a generator; another number makes other bits on a CPU.")
    kernels: Kernels = Field(default_factory=Kernels)
    quantize: dict[str, Literal["int8", "fp8", "nf4"]] = Field(
        default_factory=dict,
        exclude_if=is_empty,
        description="Parts whose weights are stored with fewer bits, such as transformer: int8; text_encoder_2: nf4.",
    )
    offload: bool = Field(
        False,
        exclude_if=is_empty,
        description="Blocks of the denoiser and of text encoders lie in main memory, and on the card while they compute.",
    )
    vae_tiling: bool = Field(
        False, exclude_if=is_empty, description="Large images are encoded and decoded in tiles, which takes less memory."
    )

    @property
    def single_file(self) -> PartWeights | None:
        """Name the one file that holds the whole base; None for a base in diffusers' format."""
        if self.base_config is None:
            return None
        return PartWeights(source=self.base, revision=self.revision, weight_name=self.base_file)

    @property
    def layout(self) -> Weights:
        """Name the model whose config files describe the base: the base itself, unless the base is a single file."""
        return self.base_config or Weights.model_construct(source=self.base, revision=self.revision, variant=self.variant)

    @property
    def reads_references(self) -> PartWeights | None:
        """Return where the image encoder of the reference adapters lies; None without adapters that read pictures."""
        pictured = [one for one in self.references.values() if one.kind != "face"]
        if self.image_encoder or not pictured:
            return self.image_encoder
        first = pictured[0]
        inside = "/".join(filter(None, (first.subfolder, "image_encoder")))
        return PartWeights(source=first.source, revision=first.revision, subfolder=inside)

    @property
    def redux(self) -> bool:
        """Return whether all references come through Redux, whose folders name no file; IP-Adapters are files."""
        return not any(one.weight_name or one.source.endswith(SAFETENSORS) for one in self.references.values())

    @property
    def faces(self) -> tuple[str, ...]:
        """Return the types of references that are embeddings of faces."""
        return tuple(name for name, one in self.references.items() if one.kind != "image")

    @property
    def pictured_faces(self) -> tuple[str, ...]:
        """Return the types of references that are embeddings of faces with pictures of them."""
        return tuple(name for name, one in self.references.items() if one.kind == "face_plus")

    def weights(self) -> dict[str, tuple[str, Weights]]:
        """Return every set of weights of the model, by its place in the config: its role in words, and where it comes from."""
        return {
            "model.base": ("base", self.single_file or self.layout),
            **({"model.base_config": ("layout of the base", self.base_config)} if self.base_config else {}),
            **({"model.denoiser": ("denoiser", self.denoiser)} if self.denoiser else {}),
            **({"model.vae": ("VAE", self.vae)} if self.vae else {}),
            **({"model.refiner": ("refiner", self.refiner)} if self.refiner else {}),
            **({"model.prior": ("prior", self.prior)} if self.prior else {}),
            **{f"model.controlnets.{name}": (f"ControlNet {name}", one) for name, one in self.controlnets.items()},
            **{f"model.references.{name}": (f"reference adapter {name}", one) for name, one in self.references.items()},
            **({"model.image_encoder": ("image encoder", encoder)} if (encoder := self.reads_references) else {}),
            **self.annotating(),
            **{f"model.loras.{one.name}": (f"LoRA {one.name}", one) for one in self.loras},
            **{f"model.textual_inversions.{one.token}": (f"textual inversion {one.token}", one) for one in self.textual_inversions},
        }

    def annotating(self) -> dict[str, tuple[str, PartWeights]]:
        """Return the weights of the annotators, as `weights` does; a detector beside what reads poses."""
        found: dict[str, tuple[str, PartWeights]] = {}
        for name, one in self.annotators.items():
            found[f"model.annotators.{name}"] = f"annotator {name}", one
            if one.detector:
                found[f"model.annotators.{name}.detector"] = f"detector of persons for {name}", one.detector
        return found

    @field_validator("annotators")
    @classmethod
    def _annotators(cls, value: dict[str, AnnotatorWeights]) -> dict[str, AnnotatorWeights]:
        for name, one in value.items():
            if name not in ANNOTATORS:
                raise ValueError(f"{quoted(name)} is no annotator{nearest(name, ANNOTATORS)}; there are {', '.join(ANNOTATORS)}")
            if (one.detector is None) == (name == "pose"):
                raise ValueError(
                    "pose needs a detector, a detection model of transformers that finds persons"
                    if name == "pose"
                    else f"{name}: only pose has a detector; leave it out"
                )
            file = (one.weight_name or one.source).endswith(SAFETENSORS)
            if file != (name in OF_FILES):
                raise ValueError(f"{name} is {ANNOTATORS[name]}, and {'no' if file else 'not a'} {'file' if file else 'folder'}")
        return value

    @model_validator(mode="after")
    def _pinned(self) -> "Model":
        check_pinned(self.base, self.revision)
        return self

    @model_validator(mode="after")
    def _single_file(self) -> "Model":
        if self.base.endswith(PICKLES):
            raise ValueError(NO_PICKLE)
        if self.base.endswith(SAFETENSORS):
            check_local_file(self.base)
        single = self.base_file is not None or self.base.endswith(SAFETENSORS)
        if single and self.base_config is None:
            lacks = "a single file says nothing of its tokenizers, sizes and scheduler"
            raise ValueError(
                f"{self.base_file or self.base}: {lacks}: name a model in diffusers' format with the same parts as base_config"
            )
        if self.base_config is not None:
            if not single:
                raise ValueError("base_config is for a base that is a single .safetensors file; name the file as base_file")
            if self.variant:
                raise ValueError("variant is for a base in diffusers' format; a single file has none")
            if self.safety_checker:
                raise ValueError("safety_checker: a single file brings none; set it to false")
            if self.base_file and self.base.endswith(SAFETENSORS):
                raise ValueError(f"{self.base} is a file itself, and has no base_file")
        return self

    @field_validator("base_file")
    @classmethod
    def _file_inside(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith(SAFETENSORS):
            raise ValueError(NO_PICKLE)
        return inside_source(value)

    @model_validator(mode="after")
    def _quantized(self) -> "Model":
        others = [weights for where, (_, weights) in self.weights().items() if where != "model.denoiser"]
        if any(str(name).endswith(GGUF) for one in others for name in (one.source, getattr(one, "weight_name", None))):
            raise ValueError(f"only model.denoiser may be a {GGUF} file")
        if wrong := [name for name in self.quantize if not name.startswith(("unet", "transformer", "text_encoder"))]:
            raise ValueError(f"quantize: {wrong[0]} is neither a UNet nor a transformer nor a text encoder; leave it out")
        if self.quantize and (self.kernels.fp8 or self.kernels.compile):
            raise ValueError("kernels.compile and kernels.fp8 do not go with quantize; set them to false, or quantize nothing")
        if self.quantize and self.base_config is not None:
            raise ValueError("quantize is for a base in diffusers' format; of a single file the denoiser can be one by itself")
        file = (self.denoiser.weight_name or self.denoiser.source) if self.denoiser else ""
        if file.endswith(GGUF) and {"unet", "transformer"} & {*self.quantize}:
            raise ValueError(f"quantize: the denoiser is a {GGUF} file, whose weights have fewer bits already; leave it out")
        if file.endswith(GGUF) and (self.kernels.fp8 or self.kernels.compile):
            raise ValueError(f"kernels.compile and kernels.fp8 do not go with a denoiser that is a {GGUF} file; set them to false")
        if self.references and ("unet" in self.quantize or file.endswith(GGUF)):
            raise ValueError("references do not go with a UNet of fewer bits; leave one of them out")
        if not self.redux and "transformer" in self.quantize:
            raise ValueError("IP-Adapters do not go with a transformer of fewer bits; leave one of the two out")
        if self.image_encoder and (self.image_encoder.weight_name or self.image_encoder.source.endswith(SAFETENSORS)):
            raise ValueError("image_encoder: name the folder of the encoder, by source and subfolder, and no file")
        return self

    @model_validator(mode="after")
    def _offloaded(self) -> "Model":
        others = {
            "kernels.channels_last": self.kernels.channels_last,
            "kernels.compile": self.kernels.compile,
            "kernels.fp8": self.kernels.fp8,
            "kernels.cache": self.kernels.cache is not None,
            "refiner": self.refiner is not None,
            "prior": self.prior is not None,
            "references": bool(self.references),
            "quantize to nf4": "nf4" in self.quantize.values(),
        }
        if self.offload and (wrong := [name for name, used in others.items() if used]):
            raise ValueError(f"{wrong[0]} does not go with offload; leave one of them out")
        return self

    @model_validator(mode="after")
    def _compiled(self) -> "Model":
        # Switching a LoRA, or its scale, makes another graph of every block.
        if self.kernels.fp8 and self.dtype != "bfloat16":
            raise ValueError("kernels.fp8 computes in bfloat16; set dtype to bfloat16")
        if self.loras and self.kernels.compile and not self.kernels.merge_loras:
            raise ValueError("kernels.compile goes with loras that are merged; set kernels.merge_loras, or compile to false")
        if self.loras and self.kernels.fp8:
            raise ValueError("kernels.fp8 does not go with loras; set it to false, or declare no loras")
        if self.loras and self.kernels.merge_loras and (self.quantize or self.offload):
            other = "quantize" if self.quantize else "offload"
            raise ValueError(f"kernels.merge_loras does not go with {other}; set it to false, or leave {other} out")
        if self.references and (self.kernels.compile or self.kernels.fp8 or self.kernels.attention != "sdpa"):
            raise ValueError("references go with kernels.attention sdpa, without compile and fp8; change them, or declare none")
        return self

    @model_validator(mode="after")
    def _refined(self) -> "Model":
        if self.refiner and self.kernels.cache:
            raise ValueError("a refiner does not go with kernels.cache; leave one of the two out")
        if self.refiner:
            for name in ("controlnets", "references", "quantize"):
                if getattr(self, name):
                    raise ValueError(f"a refiner does not go with {name} yet; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _begins_with_prior(self) -> "Model":
        if self.prior:
            for name in ("vae", "refiner", "controlnets", "references", "loras", "textual_inversions", "quantize", "base_config"):
                if getattr(self, name):
                    raise ValueError(f"a prior does not go with {name}; leave one of the two out")
        return self

    @model_validator(mode="after")
    def _references(self) -> "Model":
        for name, one in self.references.items():
            if one.source.endswith(SAFETENSORS) and not self.image_encoder and one.kind != "face":
                raise ValueError(f"references.{name}: is a file, which has no image encoder beside it; set image_encoder")
        # The LoRAs that adapters of faces bring are loaded under these names; another of the same name would be mixed with one.
        if self.faces and (
            taken := {f"faceid_{number}" for number in range(len(self.references))} & {one.name for one in self.loras}
        ):
            raise ValueError(f"loras: {min(taken)} is what diffusers calls the LoRA of an adapter of faces; take another name")
        for name, net in self.controlnets.items():
            if net.face is not None and (net.face not in self.faces or net.face in self.pictured_faces):
                raise ValueError(f"controlnets.{name}.face: {net.face} is no type of references with kind face")
        if self.image_encoder and all(one.kind == "face" for one in self.references.values()):
            raise ValueError(
                "image_encoder is for references, and none are declared" + (" that are pictures" if self.faces else "")
            )
        return self

    @field_validator("loras", "textual_inversions")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(item, "name", None) or item.token for item in value]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"{', '.join(doubled)} declared more than once")
        return value
