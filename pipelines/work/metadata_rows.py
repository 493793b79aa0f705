"""Makes the metadata of a unit: one row a candidate, kept or not, and one for each request that failed as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from promptmill.configs.schema import Config, Kernels, Ranking
from promptmill.manifests.carried import cast
from promptmill.manifests.requests import Request
from promptmill.pipelines.work.ranking import Choice
from promptmill.pipelines.work.results import Candidate, Failure, Outcome, Scored
from promptmill.pipelines.work.units import Placed, Unit, sample_key
from promptmill.shards.image_files import Provenance
from promptmill.shards.tables import DRAFT_SCORES, RANK_SCORE, REJECTED_FOR, SPARED

NEAR_DUPLICATE_OF = "near_duplicate_of"


@dataclass(frozen=True)
class Facts:
    """Holds the constants of every row of a dataset.

    Attributes:
        config: The run's config.
        carried: The manifest's own columns, with their types.
        versions: Versions of the libraries, as JSON.
        growing: Whether candidates of any request grow, so that rows say how many were not needed.
    """

    config: Config
    carried: Mapping[str, str]
    versions: str
    growing: bool = False


def request_row(facts: Facts, shard: int, placed: Placed, outcome: Outcome) -> dict[str, Any]:
    """Return the columns that all candidates of a request share."""
    request, model = placed.request, facts.config.model
    controls = [
        {**control.model_dump(), "sha256": outcome.images.get(f"controls.{i}.image")} for i, control in enumerate(request.controls)
    ]
    return {
        "id": request.id,
        **{name: getattr(request, name) for name in _REQUEST_COLUMNS},
        "init_image_sha256": outcome.images.get("init_image"),
        "mask_image_sha256": outcome.images.get("mask_image"),
        "controls": controls,
        "loras": [lora.model_dump() for lora in request.loras],
        "prompt_truncated": outcome.prompt_truncated,
        "model": model.base,
        "revision": model.revision,
        "dtype": model.dtype,
        "batch_shape": batch_shape(request, model.batch),
        "kernels": kernels(model.kernels),
        "versions": facts.versions,
        "shard": shard,
        **{name: cast(request.carried.get(name), kind) for name, kind in facts.carried.items()},
    }


_REQUEST_COLUMNS = (
    "prompt",
    "negative_prompt",
    "mode",
    "width",
    "height",
    "steps",
    "guidance_scale",
    "guidance_rescale",
    "scheduler",
    "strength",
    "candidates",
    "keep",
    "init_image",
    "mask_image",
)


def batch_shape(request: Request, batch: int) -> str:
    """Return the shape of the denoising batch, as in 16x64x64: candidates, height, width."""
    return f"{batch}x{request.height}x{request.width}"


def kernels(switches: Kernels) -> str:
    """Return the kernels as one word: the kind of attention, and the switches that are on."""
    return "+".join([switches.attention, *(name for name, value in switches if value is True)])


def failed_request(facts: Facts, shard: int, placed: Placed, outcome: Outcome, failure: Failure) -> dict[str, Any]:
    """Return the one row of a request that failed as a whole."""
    return {
        **request_row(facts, shard, placed, outcome),
        "key": sample_key(shard, placed.row, None),
        "selected": False,
        "status": "failed",
        "error": failure.code,
        "error_message": failure.message,
    }


def failed_unit(facts: Facts, unit: Unit, failure: Failure) -> list[dict[str, Any]]:
    """Return the rows of a unit that could not be rendered at all, as its part has them."""
    return [{**failed_request(facts, unit.shard, p, Outcome(p.row, ()), failure), "image": None} for p in unit.requests]


def shared_row(facts: Facts, shard: int, placed: Placed, outcome: Outcome, spared: int = 0) -> dict[str, Any]:
    """Return the columns that all rows of a request's candidates share; `spared` of its candidates were never begun."""
    shared = request_row(facts, shard, placed, outcome)
    return {**shared, SPARED: spared} if facts.growing else shared


def candidate_row(facts: Facts, shared: Mapping[str, Any], shard: int, row: int, candidate: Candidate) -> dict[str, Any]:
    """Return the row of a candidate without scores and ranking: so far the candidate is failed or drafted.

    Args:
        facts: The constants of the run's rows.
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
        "unet_evaluations": candidate.evaluations,
        **({DRAFT_SCORES: list(candidate.draft_scores)} if facts.config.ranking.drafts else {}),
    }


def ranking_columns(ranking: Ranking) -> dict[str, pa.DataType]:
    """Return the columns that a config's scorers and diversity add to the metadata, in their order; none where none are
    declared.
    """
    columns: dict[str, pa.DataType] = {f"{scorer.name}_score": pa.float32() for scorer in ranking.scorers}
    if ranking.scorers:
        columns[RANK_SCORE] = pa.float32()
    if ranking.scorers or ranking.diversity:
        columns[REJECTED_FOR] = pa.string()
    if ranking.diversity:
        columns[NEAR_DUPLICATE_OF] = pa.int32()
    return columns


def scores_row(ranking: Ranking, scored: Scored) -> dict[str, Any]:
    """Return a scored candidate's values in the columns of the other scorers."""
    return {f"{scorer.name}_score": scored.others[scorer.name] for scorer in ranking.scorers}


def choice_row(ranking: Ranking, choice: Choice) -> dict[str, Any]:
    """Return a scored candidate's values in those of `ranking_columns` that tell of the choice among all."""
    values = {
        RANK_SCORE: choice.score,
        REJECTED_FOR: choice.rejected_for,
        NEAR_DUPLICATE_OF: choice.near_duplicate_of,
    }
    return {name: value for name, value in values.items() if name in ranking_columns(ranking)}


def provenance_of(request: Request, seed: int, model: str, size: tuple[int, int]) -> Provenance:
    """Return the provenance that is written into an image. `size` is its height and width: some pipelines choose their own."""
    return Provenance(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        scheduler=request.scheduler,
        guidance_scale=request.guidance_scale,
        seed=seed,
        width=size[1],
        height=size[0],
        model=model,
    )
