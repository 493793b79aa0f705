"""Computes the gain and the price of ranking in a dataset, from its metadata, when a run is done."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from promptmill.configs.columns import CACHED, CLIP_SCORE
from promptmill.jobs.figures.ranking_gain import Bought, bought
from promptmill.jobs.figures.reading import READERS
from promptmill.jobs.figures.sampling import sample
from promptmill.jobs.planning.plan import Plan
from promptmill.shards.commits import CommitRecord, read_records
from promptmill.shards.finished import ShardReader
from promptmill.shards.tables import ranks_by

CURVE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # numbers of candidates whose expected best is printed


@dataclass(frozen=True)
class Ranked:
    """Holds the gain and the price of ranking in a dataset.

    Attributes:
        by: The column that ranked.
        bought: The gain, over the candidates that have a score.
        evaluations: Evaluations of the denoiser for all candidates; `whole` is the plan's number for all of them in full.
        drafted: Whether candidates were dropped after a draft; such candidates have no score.
        seen, candidates: Candidates that were looked at, and all candidates.
        cached: The evaluations that a step cache answered.
    """

    by: str
    bought: Bought
    evaluations: int
    whole: int
    drafted: bool
    seen: int
    candidates: int
    cached: int = 0


def look_back(output: str, plan: Plan) -> Ranked | None:
    """Compute the gain and the price of ranking, for a large dataset from some of its shards; None where nothing was ranked.

    Raises:
        OSError, ValueError, LookupError: Records or metadata cannot be read.
    """
    looked = sample(read_records(output))
    by = ranks_by(plan.form)
    priced = ("unet_evaluations", *([CACHED] if plan.config.model.kernels.cache else []))
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda record: _read(output, record, by, priced), looked.records))
    offsets = np.cumsum([0, *(int(request.max(initial=-1)) + 1 for request, *_ in parts)])
    request = (
        np.concatenate([part[0] + offset for part, offset in zip(parts, offsets, strict=False)]) if parts else np.array([], int)
    )
    score, kept = (np.concatenate([part[n] for part in parts]) if parts else np.array([]) for n in (1, 2))
    made = bought(request, score, kept.astype(bool))
    if made is None:
        return None
    spent, *cached = np.sum([part[3] for part in parts], axis=0).tolist()
    drafted = any(record.drafted for record in looked.records)
    return Ranked(by, made, spent, plan.counts.undrafted, drafted, looked.seen, looked.candidates, sum(cached))


def _read(
    output: str, record: CommitRecord, by: str, priced: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Return request, score and kept flag of a shard's scored candidates, and the sums of some columns over all candidates."""
    table = ShardReader(output, record).glance(("key", "selected", by, *priced))
    request = pc.cast(pc.list_element(pc.split_pattern(table["key"], "-"), 1), "int64").to_numpy()
    score = table[by].to_numpy().astype(np.float32, copy=False)
    scored = np.isfinite(score)
    kept = pc.fill_null(table["selected"], False).to_numpy()
    return request[scored], score[scored], kept[scored], [pc.sum(table[name]).as_py() or 0 for name in priced]


def ranked_lines(ranked: Ranked) -> Iterator[str]:
    """Yield the gain and the price as lines for a person."""
    made = ranked.bought
    name = "CLIP" if ranked.by == CLIP_SCORE else ranked.by
    finished = "finished " if ranked.drafted else ""
    yield f"ranking      a kept image scores {made.kept:.2f} by {name}, its request's mean {finished}candidate {made.mean:.2f}"
    curve = ", ".join(f"{n}: {made.curve[n - 1]:.2f}" for n in CURVE if n <= len(made.curve))
    if len(made.curve) > 1 and not ranked.drafted:
        yield f"best of n    {curve}"
    yields = ", ".join(f"{score:.2f} {100 * share:.0f}%" for share, score in made.yields.items())
    yield f"thresholds   min_score and the requests that it leaves an image: {yields}"
    if ranked.seen == ranked.candidates:
        share = f", {100 * ranked.evaluations / ranked.whole:.1f}% of all candidates in full" if ranked.whole else ""
        cached = f"; a step cache answered {100 * ranked.cached / ranked.evaluations:.0f}% of them" if ranked.cached else ""
        yield f"price        {ranked.evaluations:,} evaluations of the denoiser{share}{cached}"


def ranked_facts(ranked: Ranked) -> dict[str, Any]:
    """Return the gain and the price for a program; the margin is null for a single request."""
    made = ranked.bought
    margin = made.margin if math.isfinite(made.margin) else None
    yields = [{"requests": share, "min_score": score} for share, score in made.yields.items()]
    return {**asdict(ranked), "bought": {**asdict(made), "margin": margin, "yields": yields}}
