"""Makes the metadata of a unit: one row a candidate, kept or not, and one for each request that failed as a whole."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from promptmill.configs.columns import (
    BOXES,
    CACHED,
    CAPTION,
    CLIP_SCORE,
    COLUMNS,
    CONTROL_MAPS,
    DRAFT_SCORES,
    LOST,
    NEAR_DUPLICATE_OF,
    OF_PRIORS,
    OF_ROWS,
    RANK_SCORE,
    REFERENCES,
    REJECTED_FOR,
    SPARED,
    STAGE0,
    STAGES,
    VARIATION_SEED,
    Column,
    Role,
    by_name,
    score_column,
)
from promptmill.configs.model import Kernels
from promptmill.configs.parameters import Reference
from promptmill.configs.preprocessors import annotator_of
from promptmill.configs.schema import Config, Ranking
from promptmill.configs.stages import AnyStage
from promptmill.manifests.carried import cast
from promptmill.manifests.own_pictures import request_text
from promptmill.manifests.requests import OWN_IMAGES, Request
from promptmill.pipelines.work.ranking import Choice
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Scored
from promptmill.pipelines.work.units import Placed, Unit, sample_key
from promptmill.shards.bundles import entry
from promptmill.shards.image_files import Provenance
from promptmill.shards.tables import IMAGE


def _hashes(reference: Reference, where: str, images: Mapping[str, str]) -> dict[str, str | None]:
    """Return the SHA-256 of a reference's files by their columns; `sha256` is the image's, or that of what stands in its place."""
    first, *beside = reference.sources
    of = {"sha256": first, "mask_sha256": "mask", **({"embedding_sha256": beside[0]} if beside else {})}
    return {"embedding_sha256": None, **{column: images.get(f"{where}.{key}") for column, key in of.items()}}


def request_row(recipe: Recipe, shard: int, placed: Placed, outcome: Outcome) -> dict[str, Any]:
    """Return the columns that all candidates of a request share."""
    request, model = placed.request, recipe.config.model
    controls = [
        {**control.model_dump(), "sha256": outcome.images.get(f"controls.{i}.image")} for i, control in enumerate(request.controls)
    ]
    references = [
        one.model_dump()
        | ({} if model.references else {"scale": None})  # which a further picture has none of
        | _hashes(one, f"{REFERENCES}.{i}", outcome.images)
        for i, one in enumerate(request.references)
    ]
    return {
        "id": request.id,
        **{name: getattr(request, name) for name in _REQUEST_COLUMNS if name in recipe.form.names},
        **{f"{column}_sha256": outcome.images.get(column) for column in OWN_IMAGES},
        "controls": controls,
        **({REFERENCES: references} if REFERENCES in recipe.form.names else {}),
        **({BOXES: [box.model_dump() for box in request.gligen_boxes]} if BOXES in recipe.form.names else {}),
        **({CONTROL_MAPS: _entries_of_maps(request, outcome)} if CONTROL_MAPS in recipe.form.names else {}),
        "loras": [lora.model_dump() for lora in request.loras],
        "prompt_truncated": outcome.prompt_truncated,
        **({LOST: outcome.tokens_lost} if LOST in recipe.form.names else {}),
        "model": model.base,
        "revision": model.revision,
        "dtype": model.dtype,
        "batch_shape": batch_shape(request, model.batch),
        "kernels": kernels(model.kernels),
        "versions": recipe.versions,
        "shard": shard,
        **{name: cast(request.carried.get(name), kind) for name, kind in recipe.carried.items()},
    }


def map_note(number: int, content: bytes) -> tuple[str, str]:
    """Return the entry of `Outcome.images` for a request's encoded control map: its column, and SHA-256 and size in one text."""
    said = entry(content)
    return f"controls.{number}.map", f"{said['sha256']} {said['bytes']}"


def _entries_of_maps(request: Request, outcome: Outcome) -> list[dict[str, Any]] | None:
    """Return the entries of a request's control maps; None for a request that failed before there were any."""
    said = [outcome.images.get(f"controls.{number}.map") for number in range(len(request.controls))]
    if any(note is None for note in said):
        return None
    pairs = [note.split(" ") for note in said if note is not None]
    return [{"sha256": sha256, "bytes": int(size)} for sha256, size in pairs]


# What the metadata repeats of a request as it stands; the seed is each candidate's own, and lists are written out.
_REQUEST_COLUMNS = tuple(
    column.name
    for column in COLUMNS
    if column.role in (Role.INPUT, Role.RESOLVED) and column.name not in ("seed", "controls", REFERENCES, BOXES, "loras")
)


def batch_shape(request: Request, batch: int) -> str:
    """Return the shape of the denoising batch, as in 16x64x64: candidates, height, width."""
    return f"{batch}x{request.height}x{request.width}"


def kernels(switches: Kernels) -> str:
    """Return the kernels as one word: the kind of attention, and the switches that are on."""
    on = [name for name, value in switches if value is True]
    return "+".join([switches.attention, *on, *([f"cache {switches.cache}"] if switches.cache else [])])


def failed_request(recipe: Recipe, shard: int, placed: Placed, outcome: Outcome, failure: Failure) -> dict[str, Any]:
    """Return the one row of a request that failed as a whole."""
    return {
        **request_row(recipe, shard, placed, outcome),
        "key": sample_key(shard, placed.row, None),
        "selected": False,
        "status": "failed",
        "error": failure.code,
        "error_message": failure.message,
    }


def failed_unit(recipe: Recipe, unit: Unit, failure: Failure) -> list[dict[str, Any]]:
    """Return the rows of a unit that could not be rendered at all, as its part has them."""
    return [{**failed_request(recipe, unit.shard, p, Outcome(p.row, ()), failure), IMAGE: None} for p in unit.requests]


def shared_row(recipe: Recipe, shard: int, placed: Placed, outcome: Outcome, spared: int = 0) -> dict[str, Any]:
    """Return the columns that all rows of a request's candidates share; `spared` of its candidates were never begun."""
    shared = request_row(recipe, shard, placed, outcome)
    return {**shared, SPARED: spared} if recipe.growing else shared


def candidate_row(recipe: Recipe, shared: Mapping[str, Any], shard: int, row: int, candidate: Candidate) -> dict[str, Any]:
    """Return the row of a candidate without scores and ranking: so far the candidate is failed or drafted.

    Args:
        recipe: The constants of the run.
        shared: The result of `shared_row`.
        shard, row: The request's place.
        candidate: The candidate.
    """
    failure = candidate.failure
    return {
        **shared,
        "key": sample_key(shard, row, candidate.index),
        "candidate_index": candidate.index,
        "selected": False,
        "status": "failed" if failure else "drafted",
        "error": failure.code if failure else None,
        "error_message": failure.message if failure else None,
        "seed": candidate.seed,
        **({VARIATION_SEED: (varied + candidate.index) % 2**32} if (varied := shared.get(VARIATION_SEED)) is not None else {}),
        "unet_evaluations": candidate.evaluations,
        **({CACHED: candidate.cached} if recipe.config.model.kernels.cache else {}),
        **({DRAFT_SCORES: list(candidate.draft_scores)} if recipe.config.ranking.drafts else {}),
    }


def declared_columns(config: Config, of_rows: Collection[str] = ()) -> tuple[Column, ...]:
    """Return the columns that a config declares beside those that every dataset has, in their order.

    Args:
        config: The run's config.
        of_rows: Those of `OF_ROWS` that are there since a row decides so.
    """
    model = config.model
    there = {*of_rows, *([REFERENCES] if model.references else ())}
    more = [*(name for name in OF_ROWS if name in there), *([*OF_PRIORS] if model.prior else ())]
    more += (
        [CACHED] * bool(model.kernels.cache)
        + [STAGES] * bool(config.stages)
        + [CONTROL_MAPS] * config.shards.controls
        + [STAGE0] * config.shards.stage0
        + [CAPTION] * bool(config.captions)
    )
    return (*ranking_columns(config.ranking), *(by_name()[name] for name in more))


def ranking_columns(ranking: Ranking) -> tuple[Column, ...]:
    """Return the columns that a config's scorers and diversity add to the metadata, in their order."""
    scores = [score_column(scorer.name) for scorer in ranking.scorers]
    told = [RANK_SCORE] if ranking.scorers else []
    told += [REJECTED_FOR] if ranking.scorers or ranking.diversity else []
    told += [NEAR_DUPLICATE_OF] if ranking.diversity else []
    return (*scores, *(by_name()[name] for name in told))


def scores_row(ranking: Ranking, scored: Scored) -> dict[str, Any]:
    """Return a scored candidate's values in the columns of scores, without the rank score."""
    return {CLIP_SCORE: scored.score, **{score_column(s.name).name: scored.others[s.name] for s in ranking.scorers}}


def choice_row(ranking: Ranking, choice: Choice) -> dict[str, Any]:
    """Return a scored candidate's values in those of `ranking_columns` that tell of the choice among all."""
    values = {
        RANK_SCORE: choice.score,
        REJECTED_FOR: choice.rejected_for,
        NEAR_DUPLICATE_OF: choice.near_duplicate_of,
    }
    return {column.name: values[column.name] for column in ranking_columns(ranking) if column.name in values}


def provenance_of(
    request: Request,
    config: Config,
    images: Mapping[str, str | None],
    size: tuple[int, int],
    stages: Sequence[AnyStage] = (),
) -> Provenance:
    """Return the provenance that is written into an image.

    Args:
        request: The request of the image's candidate alone, as `manifests.own_pictures.alone` returns it.
        config: The run's config.
        images: SHA-256 of the request's image files, by column, as `Outcome.images` has them.
        size: The image's height and width: some pipelines choose their own.
        stages: The stages that the image went through.
    """
    assert request.seed is not None
    said = {
        "Denoising strength": request.strength,
        "Variation seed": request.variation_seed,
        "Variation seed strength": request.variation_strength,
    }
    passed = [{"kind": stage.kind, **stage.model_dump(mode="json", exclude_defaults=True)} for stage in stages]
    return Provenance(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        scheduler=request.scheduler,
        guidance_scale=request.guidance_scale,
        seed=request.seed,
        width=size[1],
        height=size[0],
        model=config.model.base,
        more={name: f"{value:g}" if isinstance(value, float) else value for name, value in said.items() if value is not None},
        request=request_text(request, images, _model_of(request, config), passed),
    )


def _model_of(request: Request, config: Config) -> dict[str, Any]:
    """Return the part of a config that describes its model and how it reads prompts.

    Of the parts that rows name, as LoRAs, there are those that the request names.
    """
    said: dict[str, Any] = {"batch": config.model.batch, **config.model.model_dump(mode="json", exclude_defaults=True)}
    named: dict[str, set[str | None]] = {
        "controlnets": {control.type for control in request.controls},
        "references": {one.type for one in request.references},
        "annotators": {annotator_of(control.preprocess) for control in request.controls},
    }
    for part, names in named.items():
        said[part] = {name: one for name, one in said.get(part, {}).items() if name in names}
    loras = {lora.name for lora in request.loras}
    said["loras"] = [one for one in said.get("loras", ()) if one["name"] in loras]
    said["prompts"] = config.prompts.model_dump(mode="json", exclude_defaults=True) if config.prompts else {}
    return {name: value for name, value in said.items() if value not in ({}, [], None)}


def hashes_in(row: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the SHA-256 of a row's image files, by column as `Outcome.images` has them, out of the row's metadata."""
    found = {column: row.get(f"{column}_sha256") for column in OWN_IMAGES}
    for number, control in enumerate(row.get("controls") or ()):
        found[f"controls.{number}.image"] = control["sha256"]
    for number, one in enumerate(row.get(REFERENCES) or ()):
        # Of a face with its picture the embedding has a hash of its own.
        found[f"{REFERENCES}.{number}.embedding"] = one.get("embedding_sha256") or one["sha256"]
        found[f"{REFERENCES}.{number}.image"] = one["sha256"]
        found[f"{REFERENCES}.{number}.mask"] = one["mask_sha256"]
    return found
