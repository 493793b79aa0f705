"""Looks at what a plan is made from: the manifest's files, what the model can do, and the hashes of what decides the bytes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from promptmill.configs.errors import nearest, quoted
from promptmill.configs.listed_manifests import Pictures, PromptLists
from promptmill.configs.made_manifests import MadeManifest
from promptmill.configs.own_files import ROOT
from promptmill.configs.prompts import A1111
from promptmill.configs.schema import Config
from promptmill.configs.stages import Hires
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.planning.rewritten_prompts import step_of
from promptmill.jobs.planning.trials import Trials
from promptmill.manifests.checking import check_rows
from promptmill.manifests.files import open_file
from promptmill.manifests.images import Roots, roots_of
from promptmill.manifests.made_rows import MadeFile, Rows, identity_of, with_lines
from promptmill.manifests.picture_rows import PicturesFile, find_pictures, hash_of_pictures
from promptmill.manifests.prompt_lists import ListFile, find_lists
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, find_files
from promptmill.manifests.wildcards import identity_of as identity_of_wildcards
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.clip_sources import embedding_width
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.identity import config_identity, library_versions, pinned
from promptmill.pipelines.models.language_models import check_captions, check_rewriting
from promptmill.pipelines.models.prompt_lengths import lengths_of
from promptmill.pipelines.models.reference_adapters import face_widths
from promptmill.pipelines.models.scorer_sources import check_scorers
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.evaluations import Counting
from promptmill.pipelines.work.stages import StageRules
from promptmill.pipelines.work.units import Placed


@dataclass(frozen=True)
class Sources:
    """Holds the inputs of a plan, before the manifest's rows are read.

    Attributes:
        embedding: The width of CLIP embeddings, or None where none are kept.
        inputs: The inputs of the fingerprint, without the requests.
        counting: What the model decides of the number of evaluations of the denoiser.
    """

    config: Config
    files: tuple[str, ...]
    rules: Rules
    roots: Roots
    embedding: int | None
    inputs: Mapping[str, Any]
    counting: Counting = field(default_factory=Counting)


def look(config: Config, output: str | None = None) -> Sources:
    """Find the manifest, read the model's capabilities, and hash the inputs that decide bytes.

    Args:
        config: The config.
        output: The dataset's URI, whose plan may exist already: its tuned batch and pinned commits hold.

    Raises:
        PlanError: One line on what is missing or cannot be used.
    """
    there = read_plan(output) if output is not None else None
    if there is not None and there.tuned_batch is not None:
        config = with_batch(config, there.tuned_batch)
    try:
        config = config.model_copy(update={"ranking": pinned(config.ranking, there.config.ranking if there else None)})
        if isinstance(config.manifest, MadeManifest):
            config = config.model_copy(update={"manifest": with_lines(config.manifest)})
        files = files_of(config)
        facts = read_facts(config.model)
        check_fits(config.model)
        faces = face_widths(config.model)
        models = config_identity(config)
        wildcards = [identity_of_wildcards(folder)] if config.prompts and (folder := config.prompts.wildcards) else []
        inputs = {
            "manifest": [*(hash_of(file) for file in files), *wildcards],
            "config": config.render_config(),
            "models": models,
            "versions": library_versions(config.model, config.all_stages),
        }
        width = embedding_width(config.ranking)
        check_scorers(config.ranking)
        if config.captions:
            check_captions(config.captions)
        if config.rewriting:
            check_rewriting(config.rewriting)
    except (ManifestError, ModelError) as error:
        raise PlanError([str(error)]) from None
    if config.prompts and config.prompts.syntax == A1111 and facts.prompt_key:
        raise PlanError([f"prompts.syntax: prompts of {facts.pipeline} are JSON objects, whose braces {A1111} reads as choices"])
    if config.prompts and config.prompts.long and not facts.weighting.parts:
        beside = " beside a refiner" if config.model.refiner else ""
        said = f"{facts.pipeline} reads no long prompts in chunks{beside}; models of Stable Diffusion and SDXL do"
        raise PlanError([f"prompts.long: {said}"])
    if config.model.safety_checker and not facts.safety_checker:
        raise PlanError([f"model.safety_checker: {config.model.base} brings no safety checker; set it to false"])
    for number, draft in enumerate(config.ranking.drafts):
        if draft.scheduler and draft.scheduler not in facts.schedulers:
            said = f"{draft.scheduler} does not fit the model, which takes {', '.join(facts.schedulers)}"
            raise PlanError([f"ranking.drafts.{number}.scheduler: {said}"])
        if draft.scheduler and draft.scheduler in facts.unfit:
            raise PlanError([f"ranking.drafts.{number}.scheduler: {facts.unfit[draft.scheduler]}"])
    for number, stage in enumerate(config.stages):
        if isinstance(stage, Hires) and stage.control and stage.control.type not in (nets := config.model.controlnets):
            known = f"; declared: {', '.join(nets)}" if nets else "; none is declared in model.controlnets"
            said = f"no ControlNet {quoted(stage.control.type)}{nearest(stage.control.type, nets) or known}"
            raise PlanError([f"stages.{number}.control.type: {said}"])
    if config.defaults.guidance_rescale and not facts.rescaled:
        raise PlanError([f"defaults.guidance_rescale: no pipeline of {config.model.base} takes it; leave it out"])
    rules = Rules(
        defaults=config.defaults,
        controls=tuple(config.model.controlnets),
        annotators=tuple(config.model.annotators),
        loras=tuple(lora.name for lora in config.model.loras),
        references=tuple(config.model.references),
        faces=faces,
        pictured_faces=config.model.pictured_faces,
        # What a model sets for rows has one name in both.
        **{one.name: getattr(facts, one.name) for one in fields(Rules) if hasattr(facts, one.name)},
        eta=config.model.scheduler_options.eta or 0.0,
        cannot_take=Trials.of(config.model, facts),
        ranking=config.ranking,
        strict=config.runtime.strict,
        seed=config.seed,
        **_of_prompts(config),
        lost=None if config.prompts and config.prompts.long else lengths_of(config.model),
        of_stages=StageRules(config.stages),
        rewritten=(step_of(config, output, models) if output is not None else None) or iter,
    )
    runtime = config.runtime
    roots = replace(roots_of(files, runtime.image_roots, runtime.max_image_pixels), hosts=tuple(runtime.url_hosts))
    return Sources(
        config, tuple(files), rules, roots, None if config.shards.embeddings == "none" else width, inputs, facts.counting
    )


def _of_prompts(config: Config) -> dict[str, Any]:
    prompts = config.prompts
    if prompts is None:
        return {}
    return {"syntax": prompts.syntax, "expand": prompts.expand, "wildcards": prompts.wildcards}


def files_of(config: Config) -> list[str]:
    """Return the files of a config's manifest, or what stands for one whose rows are made or are those of pictures.

    Raises:
        ManifestError: A file is not there or of no known format.
    """
    if isinstance(config.manifest, MadeManifest):
        Rows(config.manifest)  # which refuses templates that are none
        return [MadeFile(config.manifest)]
    if isinstance(config.manifest, Pictures):
        loras = [lora.name for lora in config.model.loras]
        return list(find_pictures(config.manifest, loras, config.runtime.image_roots))
    if isinstance(config.manifest, PromptLists):
        return list(find_lists(config.manifest))
    return find_files([_manifest_place(pattern) for pattern in config.patterns])


def _manifest_place(pattern: str) -> str:
    """Return the path of a manifest from the current folder, or, as presets name theirs, from promptmill's own folder."""
    own = ROOT / pattern
    return str(own) if "://" not in pattern and not Path(pattern).exists() and own.is_file() else pattern


def hash_of(file: str) -> str:
    """Return the SHA-256 of a file of a manifest, or of all that made rows depend on, in hex."""
    if isinstance(file, MadeFile):
        return hashlib.sha256(identity_of(file.made).encode()).hexdigest()
    if isinstance(file, PicturesFile):
        return hash_of_pictures(file)
    try:
        with open_file(file) as stream:
            digest = hashlib.file_digest(cast(Any, stream), "sha256")
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror or error}") from None
    if isinstance(file, ListFile) and file.form:
        digest.update(f"\nform: {file.form}".encode())
    return digest.hexdigest()


def first_request(sources: Sources) -> Placed:
    """Return the first row that makes a request, with its images checked.

    Raises:
        PlanError: No row does, or the manifest cannot be read.
    """
    try:
        for checked in check_rows(sources.files, sources.rules, sources.roots):
            if checked.request and not checked.problems:
                return Placed(0, checked.request, checked.images, checked.file)
    except ManifestError as error:
        raise PlanError([str(error)]) from None
    raise PlanError(["no row makes a request"])


def with_batch(config: Config, batch: int) -> Config:
    """Return the config with another denoising batch."""
    return config.model_copy(update={"model": config.model.model_copy(update={"batch": batch})})
