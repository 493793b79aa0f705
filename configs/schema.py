"""Defines the config of a run. All but `output` and `runtime` decide the bytes of the dataset; together they are the render
config.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from promptmill.configs.drafts import MAX_DRAFTS, Draft, check_cascade, check_noise, misfits
from promptmill.configs.errors import A_NUMBER, AN_OBJECT, nearest, quoted
from promptmill.configs.parameters import Defaults, Growing, Seed, Strict, no_boolean
from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.configs.scorers import CLIP, AnyScorer, Diversity, HeadScorer
from promptmill.configs.weights import (
    FOLDER_OR_REPOSITORY,
    GGUF,
    NO_PICKLE,
    PICKLES,
    SAFETENSORS,
    Adapter,
    ControlNetWeights,
    Layout,
    OpenClip,
    PartWeights,
    Revision,
    Weights,
    check_pinned,
    inside_source,
)

MaxFailed = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,6})?%$")]
# What each is stands in `shards.image_files.FORMATS`.
ImageFormat = Literal["png", "jpg", "webp"]
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s/@:?#*\[\]]+)(:[0-9]{1,5})?")


def _is_empty(value: Any) -> bool:
    return not value


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
    fp8: bool = Field(False, description="Linear layers of the blocks in FP8, scaled row by row; needs torchao and a recent GPU.")


class Model(Strict):
    """Declares the diffusion model: any base that diffusers' AutoPipeline classes load, and the weights put on top of the base."""

    base: str = Field(min_length=1, description=FOLDER_OR_REPOSITORY)
    revision: Revision = None
    variant: str | None = Field(None, description="The files' variant, such as fp16.")
    # Left out where they are not given, so that they change no fingerprint of a plan without them.
    base_file: str | None = Field(
        None, exclude_if=_is_empty, description="The one safetensors file of the base that is the model, in its authors' layout."
    )
    base_config: Layout | None = Field(
        None,
        exclude_if=_is_empty,
        description="For a base that is a single file: a model in diffusers' format with the same parts, whose configs are taken.",
    )
    # Left out where it is not given, so that it changes no fingerprint of a plan without it.
    denoiser: PartWeights | None = Field(
        None, exclude_if=_is_empty, description="A UNet or transformer in place of the base's: a fine-tune, a distillation."
    )
    vae: Weights | None = None
    controlnets: dict[str, ControlNetWeights] = Field(
        default_factory=dict, description="ControlNets by the type that requests name."
    )
    references: dict[str, PartWeights] = Field(
        default_factory=dict,
        exclude_if=_is_empty,
        description="Adapters for reference images (IP-Adapters), by the type that requests name.",
    )
    image_encoder: PartWeights | None = Field(
        None,
        exclude_if=_is_empty,
        description="What reads reference images, for all adapters; image_encoder beside the first adapter where not given.",
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
        exclude_if=_is_empty,
        description="Parts whose weights are stored with fewer bits, such as transformer: int8; text_encoder_2: nf4.",
    )
    vae_tiling: bool = Field(
        False, exclude_if=_is_empty, description="Large images are encoded and decoded in tiles, which takes less memory."
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
        """Return where the image encoder of the reference adapters lies; None without adapters."""
        if self.image_encoder or not self.references:
            return self.image_encoder
        first = next(iter(self.references.values()))
        inside = "/".join(filter(None, (first.subfolder, "image_encoder")))
        return PartWeights(source=first.source, revision=first.revision, subfolder=inside)

    def weights(self) -> dict[str, tuple[str, Weights]]:
        """Return every set of weights of the model, by its place in the config: its role in words, and where it comes from."""
        return {
            "model.base": ("base", self.single_file or self.layout),
            **({"model.base_config": ("layout of the base", self.base_config)} if self.base_config else {}),
            **({"model.denoiser": ("denoiser", self.denoiser)} if self.denoiser else {}),
            **({"model.vae": ("VAE", self.vae)} if self.vae else {}),
            **{f"model.controlnets.{name}": (f"ControlNet {name}", one) for name, one in self.controlnets.items()},
            **{f"model.references.{name}": (f"reference adapter {name}", one) for name, one in self.references.items()},
            **({"model.image_encoder": ("image encoder", encoder)} if (encoder := self.reads_references) else {}),
            **{f"model.loras.{one.name}": (f"LoRA {one.name}", one) for one in self.loras},
            **{f"model.textual_inversions.{one.token}": (f"textual inversion {one.token}", one) for one in self.textual_inversions},
        }

    @model_validator(mode="after")
    def _pinned(self) -> "Model":
        check_pinned(self.base, self.revision)
        return self

    @model_validator(mode="after")
    def _single_file(self) -> "Model":
        if self.base.endswith(PICKLES):
            raise ValueError(NO_PICKLE)
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
        return self

    @model_validator(mode="after")
    def _compiled(self) -> "Model":
        # Switching a LoRA, or its scale, makes another graph of every block.
        if self.loras and (self.kernels.compile or self.kernels.fp8):
            raise ValueError("kernels.compile and kernels.fp8 do not go with loras; set them to false, or declare no loras")
        if self.references and (self.kernels.compile or self.kernels.fp8 or self.kernels.attention != "sdpa"):
            raise ValueError("references go with kernels.attention sdpa, without compile and fp8; change them, or declare none")
        return self

    @model_validator(mode="after")
    def _references(self) -> "Model":
        for name, one in self.references.items():
            if not one.source.endswith(SAFETENSORS) and not one.weight_name:
                raise ValueError(f"references.{name}: needs a weight_name, the adapter's {SAFETENSORS} file in {one.source}")
            if one.source.endswith(SAFETENSORS) and not self.image_encoder:
                raise ValueError(f"references.{name}: is a file, which has no image encoder beside it; set image_encoder")
        if self.image_encoder and not self.references:
            raise ValueError("image_encoder is for references, and none are declared")
        return self

    @field_validator("loras", "textual_inversions")
    @classmethod
    def _distinct(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(item, "name", None) or item.token for item in value]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"{', '.join(doubled)} declared more than once")
        return value


class Ranking(OpenClip, Strict):
    """Declares how candidates are scored and which are kept."""

    model: str = Field(
        "ViT-B-32", min_length=1, description="An open_clip model: by name, as local-dir:FOLDER, or as hf-hub:owner/name."
    )
    pretrained: str | None = Field(
        # Only the default model has a default tag.
        default_factory=lambda given: "laion2b_s34b_b79k" if given.get("model") == "ViT-B-32" else None,
        description="The open_clip tag of the weights; for a model given by name.",
    )
    batch: int = Field(64, ge=1, le=4096, description="Images a batch of the model; part of what decides the bytes.")
    min_score: float | None = Field(
        None, ge=-100, le=100, allow_inf_nan=False, description="100 x cosine that a kept image reaches."
    )
    drafts: tuple[Draft, ...] = Field(
        (),
        max_length=MAX_DRAFTS,
        description="A cascade that candidates go through before they are rendered in full: docs/drafts.md.",
    )
    drafts_stochastic: bool = Field(False, description="Allow drafts with samplers that add noise of their own at every step.")

    # Left out where they are not given, so that they change no fingerprint of a plan without them.
    scorers: tuple[AnyScorer, ...] = Field((), exclude_if=_is_empty, description="What scores candidates beside CLIP.")
    weights: dict[str, Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False), BeforeValidator(no_boolean)]] = Field(
        default_factory=dict,
        exclude_if=_is_empty,
        description="By name, what each score counts in the sum that ranks; clip is the model above, and ranks alone without any.",
    )
    diversity: Diversity | None = Field(None, exclude_if=_is_empty, description="When candidates are too much alike.")

    def sources(self) -> dict[str, tuple[str, OpenClip | Weights]]:
        """Return everything that scores, by its place in the config: its role in words, and where it comes from."""
        others = {f"ranking.scorers.{one.name}": (f"scorer {one.name}", one) for one in self.scorers}
        return {"ranking.model": ("scorer", self), **others}

    @property
    def summands(self) -> dict[str, float]:
        """Return the weights of the scores whose sum ranks; none where no scorer is declared, and CLIP's score alone ranks."""
        return (self.weights or {CLIP: 1.0}) if self.scorers else {}

    @property
    def least(self) -> float | None:
        """Return the rank score that a kept image reaches; None where no such limit is known."""
        return None if self.scorers else self.min_score

    @model_validator(mode="after")
    def _cascade(self) -> "Ranking":
        check_cascade(self.drafts, self.drafts_stochastic)
        return self

    @model_validator(mode="after")
    def _combined(self) -> "Ranking":
        names = [scorer.name for scorer in self.scorers]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"scorers: {', '.join(doubled)} declared more than once")
        embedding = [CLIP, *(scorer.name for scorer in self.scorers if not isinstance(scorer, HeadScorer))]
        for scorer in self.scorers:
            if isinstance(scorer, HeadScorer) and scorer.reads not in embedding:
                there = nearest(scorer.reads, embedding) or f"; those that have one: {', '.join(embedding)}"
                raise ValueError(f"scorers: {scorer.name} reads the embedding of {quoted(scorer.reads)}, which is none{there}")
        if self.weights and not self.scorers:
            raise ValueError("weights are for scorers, and none are declared")
        for name in self.weights:
            if name not in (CLIP, *names):
                there = f"{nearest(name, names)}; there are {', '.join([CLIP, *names])}"
                raise ValueError(f"weights: {quoted(name)} is no scorer{there}")
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights are all 0, so nothing would rank")
        return self


class Shards(Strict):
    """Declares the form of the dataset."""

    size: int = Field(1000, ge=1, le=100_000, description="Requests a shard; a key has five digits for them.")
    image_format: ImageFormat = "png"
    quality: int = Field(95, ge=1, le=100, description="For jpg and webp; 100 is lossless for webp.")
    embeddings: Literal["kept", "all", "none"] = "kept"


class Elastic(Strict):
    """Declares a pool that grows as nodes join the cluster, and shrinks as they go."""

    min: int = Field(1, ge=0, description="There has to be room for so many when the run begins; 0 waits for the first node.")
    max: int = Field(ge=1, le=100_000)

    @model_validator(mode="after")
    def _in_order(self) -> "Elastic":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class Runtime(Strict):
    """Declares where and how the job runs, and which mistakes stop the job before it starts."""

    workers: Literal["ray", "here"] = Field(
        "ray", description="Actors of Ray, or one generator and one scorer in this process, which starts faster and needs no Ray."
    )
    address: str | None = Field(None, description="The Ray cluster; this machine by itself where it is not given.")
    generators: Annotated[
        Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Tag(A_NUMBER)] | Annotated[Elastic, Tag(AN_OBJECT)],
        Discriminator(lambda value: AN_OBJECT if isinstance(value, dict | Elastic) else A_NUMBER),
    ] = Field("auto", description="How many actors render; {min: …, max: …} lets them come and go with the cluster's nodes.")
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Where a run without address offers Ray's metrics (`workers: here` has none); Ray picks one where not given.",
    )
    scorers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    generator_gpus: float = Field(0.75, gt=0, le=16, description="The rest of each card is for scorers.")
    scorer_gpus: float = Field(0.25, gt=0, le=16)
    require_gpus: bool = Field(False, description="Refuse a cluster without GPUs, where the run would go to the CPUs instead.")
    strict: bool = Field(False, description="Refuse unknown manifest columns instead of carrying them into the output.")
    on_bad_row: Literal["refuse", "record"] = "refuse"
    check_images: Literal["auto", "all", "at_run"] = "auto"
    image_roots: tuple[str, ...] = Field((), description="Folders beside the manifest's own that image paths may lie in.")
    url_hosts: tuple[str, ...] = Field((), description="Hosts that images may be fetched from, as example.com or example.com:8443.")
    max_image_pixels: int = Field(64_000_000, ge=1)
    unit_deadline_s: float = Field(1800.0, gt=0)
    max_failed: MaxFailed | None = Field(
        None, description="The run stops, to be resumed, once more candidates have failed: a number, or a share as 5%."
    )
    mixed_hardware: bool = False

    @model_validator(mode="after")
    def _alone_here(self) -> "Runtime":
        if self.workers == "here":
            several = [name for name in ("generators", "scorers") if getattr(self, name) not in ("auto", 1)]
            wrong = [name for name in ("address", "metrics_port") if getattr(self, name) is not None] + several
            if wrong:
                why = "one generator and one scorer in this process, without Ray and its metrics"
                raise ValueError(f"workers: here is {why}; take {' and '.join(wrong)} away, or set workers: ray")
        return self

    @field_validator("max_failed", mode="before")
    @classmethod
    def _number_or_share(cls, value: Any) -> Any:
        share = isinstance(value, str) and re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%", value)
        if share and float(share[1]) <= 100:
            return value
        if value is None or (isinstance(no_boolean(value), int) and value >= 0):
            return value
        raise ValueError("input should be a number of candidates, such as 20, or a share of them, such as 5%")

    @field_validator("url_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not HOST.fullmatch(host):
                raise ValueError(f"{quoted(host)} is not a host; write it as example.com, or example.com:8443 with its port")
        return tuple(host.lower() for host in value)


class Config(Strict):
    """Declares a run: a manifest, the model and settings to render it with, and where to put the dataset."""

    manifest: str | tuple[str, ...]
    output: str | None = None
    seed: Seed = 0
    model: Model
    defaults: Defaults = Field(default_factory=Defaults)
    ranking: Ranking = Field(default_factory=Ranking)
    shards: Shards = Field(default_factory=Shards)
    runtime: Runtime = Field(default_factory=Runtime)

    @model_validator(mode="after")
    def _drafts_of_defaults(self) -> "Config":
        of, drafts, eta = self.defaults, self.ranking.drafts, self.model.scheduler_options.eta or 0.0
        growing = of.candidates if isinstance(of.candidates, Growing) else None
        if growing and self.ranking.least is not None and growing.until_score < self.ranking.least:
            below = f"{growing.until_score:g} is below ranking.min_score {self.ranking.least:g}"
            raise ValueError(f"defaults.candidates.until_score: {below}, which a kept image reaches")
        if not drafts:
            return self
        candidates = growing.start if growing else of.candidates
        assert isinstance(candidates, int)
        if drafts[0].keep >= candidates:
            raise ValueError(
                f"ranking.drafts.0.keep: {drafts[0].keep} of {candidates} candidates are all; keep fewer, or render more"
            )
        wrong = misfits(
            drafts,
            self.ranking.drafts_stochastic,
            candidates=candidates,
            keep=of.keep,
            steps=of.steps,
            strength=None,
            scheduler=of.scheduler,
            eta=eta,
        )
        check_noise(drafts, self.ranking.drafts_stochastic, eta)
        if wrong:
            raise ValueError(f"defaults.{wrong[0]}")
        return self

    def render_config(self) -> dict[str, Any]:
        """Return the config's part that decides bytes, as JSON values: all but the manifest's place, `output` and `runtime`."""
        values = self.model_dump(mode="json", exclude={"manifest", "output", "runtime"})
        if not self.ranking.drafts:
            # Without drafts these keys decide nothing; left out, they leave the fingerprints of older plans as they are.
            del values["ranking"]["drafts"], values["ranking"]["drafts_stochastic"]
        for name in ("image_guidance_scale", "noise_level"):
            # Likewise, where the config says nothing else.
            if values["defaults"][name] == Defaults.model_fields[name].default:
                del values["defaults"][name]
        return values
