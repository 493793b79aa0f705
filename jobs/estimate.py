"""What a plan will cost, by rendering one batch of it here: seconds an evaluation, bytes an image."""

import os
import time
from collections import Counter
from dataclasses import dataclass, replace

from jobs.plan import Plan, ShardPlan
from pipelines.units import Placed, Unit, bucket_of

FEW, MORE = 2, 6  # steps of the two timed batches; their difference is what steps cost, the rest is what images cost
ROW_BYTES = 700  # of metadata a candidate, compressed, and of its JSON in the tar about as much


@dataclass(frozen=True)
class Estimate:
    """From one bucket of the plan's first shard; other sizes are scaled by their pixels.

    Attributes:
        seconds: Of one generator like this machine's, for the whole plan, start-up apart.
        generators: That this machine would run.
        disk: Bytes of the finished dataset.
    """

    seconds: float
    generators: int
    disk: float


def measure(plan: Plan, shard: ShardPlan) -> Estimate:
    """Load the model and render two short batches of the plan's most frequent bucket.

    Raises:
        ModelError: The model cannot be loaded.
    """
    # Only an estimate needs torch in the driver's process.
    import torch

    from pipelines.engine import Engine
    from shards.images import Provenance, encode_image

    config = plan.config
    engine = Engine(config.model, config.seed, plan.roots)
    placed = _most_frequent(shard)
    request = replace(placed.request, candidates=config.model.batch, keep=1)

    def timed(steps: int) -> tuple[float, list]:
        steps = max(steps, int(1 / request.strength) + 1) if request.strength else steps
        unit = Unit(shard.shard, 0, (replace(placed, request=replace(request, steps=steps)),))
        started = time.monotonic()
        rendered = engine.render(unit)
        return time.monotonic() - started, [c for outcome in rendered.outcomes for c in outcome.candidates]

    timed(FEW)  # warm
    few, candidates = timed(FEW)
    more, candidates_of_more = timed(MORE)
    evaluated = sum(c.evaluations for c in candidates_of_more) - sum(c.evaluations for c in candidates)
    an_evaluation = max(0.0, more - few) / max(1, evaluated)
    an_image = max(0.0, few - an_evaluation * sum(c.evaluations for c in candidates)) / config.model.batch
    scale = plan.counts.pixels / max(1, plan.counts.candidates) / (request.width * request.height)
    seconds = scale * (an_evaluation * plan.counts.evaluations + an_image * plan.counts.candidates)

    pixels = next((c.pixels for c in candidates_of_more if c.pixels is not None), None)
    provenance = Provenance(request.prompt, "", request.steps, request.scheduler, 1.0, 0, request.width, request.height, "")
    image = 0
    if pixels is not None:
        image = len(encode_image(pixels, config.shards.image_format, config.shards.quality, provenance))
    embedding = 2 * (plan.embedding or 0)
    rows = plan.counts.candidates * (ROW_BYTES + (embedding if config.shards.embeddings == "all" else 0))
    kept = plan.counts.keep * (scale * image + 4 * ROW_BYTES + (embedding if config.shards.embeddings == "kept" else 0))
    here = torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // config.model.threads)
    return Estimate(seconds, here, rows + kept)


def _most_frequent(shard: ShardPlan) -> Placed:
    buckets = Counter(bucket_of(placed.request) for placed in shard.requests for _ in range(placed.request.candidates))
    wanted = buckets.most_common(1)[0][0]
    return next(placed for placed in shard.requests if bucket_of(placed.request) == wanted)
