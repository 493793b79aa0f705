"""Defines the config of a run. All but `output` and `runtime` decide the bytes of the dataset; together they are the render
config.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from promptmill.configs.drafts import MAX_DRAFTS, Draft, check_cascade, check_noise, misfits
from promptmill.configs.errors import A_NUMBER, AN_OBJECT, nearest, quoted
from promptmill.configs.language_models import Captions, Rewriting
from promptmill.configs.listed_manifests import Pictures, PromptLists
from promptmill.configs.made_manifests import MadeManifest
from promptmill.configs.model import Model
from promptmill.configs.parameters import FURTHER, Defaults, Growing, Seed, Strict, is_empty, no_boolean
from promptmill.configs.prompts import Prompts
from promptmill.configs.scorers import CLIP, AnyScorer, Diversity, HeadScorer
from promptmill.configs.stages import MAX_STAGES, AnyStage, StageOrCaptions, sources_of
from promptmill.configs.weights import OpenClip, Weights

MaxFailed = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[0-9]{1,3}(\.[0-9]{1,6})?%$")]
# What each is stands in `shards.image_files.FORMATS`.
ImageFormat = Literal["png", "jpg", "webp"]
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s/@:?#*\[\]]+)(:[0-9]{1,5})?")


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
    scorers: tuple[AnyScorer, ...] = Field((), exclude_if=is_empty, description="What scores candidates beside CLIP.")
    weights: dict[str, Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False), BeforeValidator(no_boolean)]] = Field(
        default_factory=dict,
        exclude_if=is_empty,
        description="By name, what each score counts in the sum that ranks; clip is the model above, and ranks alone without any.",
    )
    diversity: Diversity | None = Field(None, exclude_if=is_empty, description="When candidates are too much alike.")

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
    controls: bool = Field(
        False, exclude_if=is_empty, description="Put the control maps that steered an image beside it, as {key}.control.0.png."
    )
    stage0: bool = Field(
        False, exclude_if=is_empty, description="Put each kept image as it was before the stages beside it, as {key}.stage0.png."
    )


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
    scorers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="How many actors score; auto begins with one, and starts more where rendered units wait for them."
    )
    generator_gpus: Annotated[float, Field(gt=0, le=16)] | Literal["auto"] = Field(
        "auto", description="Share of a GPU of each generator, or whole GPUs; auto is what the scorer's share leaves of a card."
    )
    scorer_gpus: Annotated[float, Field(gt=0, le=16)] | Literal["auto"] = Field(
        "auto", description="Share of a GPU of each scorer; auto is what its models need of the smallest card, by their sizes."
    )
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


def _kind_of_manifest(value: Any) -> str:
    if isinstance(value, Pictures) or (isinstance(value, dict) and "pictures" in value):
        return "(pictures)"
    if isinstance(value, PromptLists) or (isinstance(value, dict) and "lists" in value):
        return "(lists)"
    return AN_OBJECT if isinstance(value, dict | MadeManifest) else "(paths)"


class Config(Strict):
    """Declares a run: a manifest, the model and settings to render it with, and where to put the dataset."""

    manifest: Annotated[
        Annotated[str | tuple[str, ...], Tag("(paths)")]
        | Annotated[MadeManifest, Tag(AN_OBJECT)]
        | Annotated[Pictures, Tag("(pictures)")]
        | Annotated[PromptLists, Tag("(lists)")],
        Discriminator(_kind_of_manifest),
    ]
    output: str | None = None
    seed: Seed = 0
    model: Model
    defaults: Defaults = Field(default_factory=Defaults)
    prompts: Prompts | None = Field(None, exclude_if=is_empty, description="How prompts are read: docs/prompts.md.")
    ranking: Ranking = Field(default_factory=Ranking)
    stages: tuple[AnyStage, ...] = Field(
        (),
        max_length=MAX_STAGES,
        exclude_if=is_empty,
        description="What kept images go through, one after another: docs/stages.md.",
    )
    captions: Captions | None = Field(
        None,
        exclude_if=is_empty,
        description="What captions of kept images are written by, as a column and a file beside each: docs/language_models.md.",
    )
    shards: Shards = Field(default_factory=Shards)
    runtime: Runtime = Field(default_factory=Runtime)

    def weights(self) -> dict[str, tuple[str, OpenClip | Weights]]:
        """Return every set of weights that takes part, by its place in the config: its role in words, and where it comes from."""
        return {**self.model.weights(), **self.ranking.sources(), **sources_of(self.all_stages), **self.rewriting_sources()}

    @property
    def rewriting(self) -> Rewriting | None:
        """Return how prompts are rewritten; None where they stay as they are."""
        return self.prompts.rewrite if self.prompts else None

    def rewriting_sources(self) -> dict[str, tuple[str, Weights]]:
        """Return the weights of the model that rewrites prompts, by their place in the config, as `weights` does."""
        return self.rewriting.sources() if self.rewriting else {}

    @property
    def all_stages(self) -> tuple[StageOrCaptions, ...]:
        """Return the stages that kept images go through, one after another, with captions as the last."""
        return (*self.stages, *([self.captions] if self.captions else []))

    @property
    def patterns(self) -> tuple[str, ...]:
        """Return the paths, globs and URIs of the manifest's files; none where the rows are made."""
        if isinstance(self.manifest, MadeManifest):
            return ()
        if isinstance(self.manifest, Pictures | PromptLists):
            return self.manifest.patterns
        return (self.manifest,) if isinstance(self.manifest, str) else self.manifest

    @model_validator(mode="after")
    def _staged(self) -> "Config":
        if self.shards.stage0 and not self.stages:
            raise ValueError("shards.stage0 is for stages, and the config has none")
        return self

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
        for name in FURTHER:
            # Likewise, where the config says nothing else.
            if values["defaults"][name] == Defaults.model_fields[name].default:
                del values["defaults"][name]
        return values
