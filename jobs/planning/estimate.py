"""Estimates the cost of a plan by rendering one batch of it here: seconds an evaluation, bytes an image."""

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from promptmill.configs.schema import Config
from promptmill.configs.step_caches import StepCache
from promptmill.configs.weights import SAFETENSORS
from promptmill.jobs.planning.plan import Plan, PlanError, ShardPlan
from promptmill.jobs.planning.shard_plans import read_shard
from promptmill.manifests.images import Roots
from promptmill.manifests.requests import Request
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.sources import local_folder
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.stages import size_after
from promptmill.pipelines.work.units import Placed, Unit, bucket_of, decodes

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.tuning import Tuned

WHOLE, OUTER = StepCache(every=2, first=1), StepCache(every=100, first=0)  # no step from the cache, and all but the first
FEW, MORE = 2, 6  # steps of the two timed batches; the difference is the cost of steps, the rest the cost of images
SMALL = 500 * 10**6  # bytes of weights; a model below renders a batch on a CPU in seconds
ROW_BYTES = 700  # of metadata a candidate, compressed, and of its JSON in the tar about as much


@dataclass(frozen=True)
class Estimate:
    """Holds the estimated cost of a plan, from one bucket of its first shard.

    Other sizes are scaled by their pixels; drafts of other requests are taken to be decoded as often.

    Attributes:
        seconds: Seconds of one generator on a machine like this, for the whole plan, without start-up.
        generators: Number of generators that this machine would run.
        disk: Bytes of the finished dataset.
    """

    seconds: float
    generators: int
    disk: float


def worth_measuring(plan: Plan) -> str | None:
    """Return the reason not to render anything here for an estimate: a download, or minutes on a CPU; None where there is none."""
    model = plan.config.model
    sources = [weights.source for _, weights in model.weights().values()]
    places = [local_folder(source) for source in sources]
    weights = sum(_weights_in(place) for place in places if place)
    if None not in places and weights < SMALL:
        return None
    # Only an estimate needs torch in the driver's process.
    from promptmill.pipelines.rendering.gpus import gpus

    if gpus():
        return None
    what = f"{weights / 1e9:.1f} GB of weights" if None not in places else f"{sources[places.index(None)]} from the hub"
    return f"there is no GPU here, and rendering with {what} on a CPU would take long"


def _weights_in(place: Path) -> int:
    files = [place] if place.is_file() else place.rglob(f"*{SAFETENSORS}")
    return sum(file.stat().st_size for file in files)


def measure(plan: Plan, shard: ShardPlan) -> Estimate | None:
    """Load the model and render two short batches of the plan's most frequent bucket.

    Returns:
        None where that bucket's request cannot be rendered, which says nothing about the others.

    Raises:
        ModelError: The model cannot be loaded, or does not fit into memory with its batch.
    """
    from promptmill.pipelines.rendering.engine import Engine, FatalError
    from promptmill.pipelines.rendering.gpus import gpus
    from promptmill.shards.image_files import Provenance, encode_image

    config = plan.config
    engine = Engine(config.model, config.seed, plan.roots, prompts=config.prompts)
    placed = _most_frequent(shard)
    request = replace(placed.request, candidates=config.model.batch, keep=1, growing=None)

    def timed(steps: int, cache: StepCache = WHOLE) -> tuple[float, list]:
        # A prior's evaluations have another price: with as large a share of the steps, the mean is that of the plan.
        # Some priors take no schedule of one step.
        few = min(2, request.prior_steps or 0)
        prior = max(few, round(request.prior_steps * steps / request.steps)) if request.prior_steps else None
        steps = math.ceil(steps / request.strength) if request.strength else steps
        given = cache if config.model.kernels.cache else None
        unit = Unit(shard.shard, 0, (replace(placed, request=replace(request, steps=steps, prior_steps=prior), cache=given),))
        started = time.monotonic()
        try:
            rendered = engine.render(unit)
        except FatalError as error:
            raise ModelError(f"{config.model.base}: {error}") from None
        return time.monotonic() - started, [c for outcome in rendered.outcomes for c in outcome.candidates]

    timed(FEW)  # warm
    few, candidates = timed(FEW)
    more, candidates_of_more = timed(MORE)
    pixels = next((c.pixels for c in candidates_of_more if c.pixels is not None), None)
    evaluated = sum(c.evaluations for c in candidates_of_more) - sum(c.evaluations for c in candidates)
    if pixels is None or evaluated <= 0:
        return None
    an_evaluation = max(0.0, more - few) / evaluated
    an_image = max(0.0, few - an_evaluation * sum(c.evaluations for c in candidates)) / config.model.batch
    scale = plan.counts.pixels / max(1, plan.counts.candidates) / (request.width * request.height)
    requests = [placed.request for placed in shard.requests]
    decoded = sum(decodes(each, config.ranking.drafts) for each in requests) / sum(each.candidates for each in requests)
    saved = 0.0
    if plan.counts.cached:
        less, shortened = timed(MORE, OUTER)
        saved = min(an_evaluation, max(0.0, more - less) / max(1, sum(c.cached for c in shortened)))
    evaluations = plan.counts.evaluations - plan.counts.staged + plan.counts.staged_alike
    evaluating = an_evaluation * evaluations - saved * plan.counts.cached
    seconds = scale * (evaluating + an_image * decoded * plan.counts.candidates)

    provenance = Provenance(request.prompt, "", request.steps, request.scheduler, 1.0, 0, request.width, request.height, "")
    image = _larger(plan, requests) * len(encode_image(pixels, config.shards.image_format, config.shards.quality, provenance))
    if config.shards.stage0:
        image += len(encode_image(pixels, "png", config.shards.quality, provenance))
    embedding = 2 * (plan.embedding or 0)
    rows = plan.counts.candidates * (ROW_BYTES + (embedding if config.shards.embeddings == "all" else 0))
    kept = plan.counts.keep * (scale * image + 4 * ROW_BYTES + (embedding if config.shards.embeddings == "kept" else 0))
    one = config.runtime.workers == "here"
    here = 1 if one else len(gpus()) or max(1, (os.cpu_count() or 1) // config.model.threads)
    return Estimate(seconds, here, rows + kept)


def _larger(plan: Plan, requests: Sequence[Request]) -> float:
    """Return how many times as many pixels the kept images of some requests have once they have gone through the stages."""
    stages = plan.config.stages
    if not stages:
        return 1.0
    multiple = read_facts(plan.config.model).multiple
    after = sum(each.keep * math.prod(size_after(each, stages, multiple)) for each in requests)
    return after / sum(each.keep * each.width * each.height for each in requests)


def _most_frequent(shard: ShardPlan) -> Placed:
    buckets = Counter(bucket_of(placed.request) for placed in shard.requests for _ in range(placed.request.candidates))
    wanted = buckets.most_common(1)[0][0]
    return next(placed for placed in shard.requests if bucket_of(placed.request) == wanted)


def tried(config: Config, placed: Placed, roots: Roots) -> "Tuned":
    """Try batch sizes on the real model; see `pipelines.rendering.tuning.tune`.

    Raises:
        ModelError, PlanError: The model cannot be loaded, or the request not be rendered.
    """
    from promptmill.pipelines.rendering.tuning import tune

    try:
        return tune(config.model, placed, config.seed, roots)
    except ValueError as error:
        raise PlanError([f"--tune: {error}"]) from None


def estimated(plan: Plan, output: str, asked: bool) -> tuple[Estimate | None, str]:
    """Estimate the cost of a plan by rendering a batch of it here, unless that would be expensive and `asked` is false.

    Returns:
        The estimate, or None and why there is none.
    """
    reason = None if asked else worth_measuring(plan)
    if reason:
        return None, f"{reason}; --measure renders a batch all the same"
    shards = (read_shard(output, number, plan) for number in range(plan.shards))
    estimate = measure(plan, next(shard for shard in shards if shard.requests))
    return estimate, "" if estimate else "the request that was tried could not be rendered"
