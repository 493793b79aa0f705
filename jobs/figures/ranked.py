"""What ranking came to in a dataset: what it bought and what it cost, read from the metadata when a run is done."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from promptmill.configs.columns import CLIP_SCORE
from promptmill.jobs.figures.ranking_gain import Bought, bought
from promptmill.jobs.figures.reading import READERS
from promptmill.jobs.figures.sampling import sample
from promptmill.jobs.planning.plan import Plan
from promptmill.shards.commits import CommitRecord, read_records
from promptmill.shards.finished import ShardReader
from promptmill.shards.tables import ranks_by

CURVE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # candidates whose best is said


@dataclass(frozen=True)
class Ranked:
    """What ranking came to.

    Attributes:
        by: The column that ranked.
        bought: What it bought, by the candidates that have a score.
        evaluations: Of the denoiser, for all candidates; `whole` what all of them in full would have taken, by the plan.
        drafted: Whether candidates were left behind after a draft; these have no score.
        seen, candidates: Candidates that were looked at, of all.
    """

    by: str
    bought: Bought
    evaluations: int
    whole: int
    drafted: bool
    seen: int
    candidates: int


def look_back(output: str, plan: Plan) -> Ranked | None:
    """Read what ranking came to, of a large dataset from some of its shards; None where nothing was ranked.

    Raises:
        OSError, ValueError, LookupError: Records or metadata cannot be read.
    """
    looked = sample(read_records(output))
    by = ranks_by(plan.form)
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda record: _read(output, record, by), looked.records))
    offsets = np.cumsum([0, *(int(request.max(initial=-1)) + 1 for request, *_ in parts)])
    request = (
        np.concatenate([part[0] + offset for part, offset in zip(parts, offsets, strict=False)]) if parts else np.array([], int)
    )
    score, kept = (np.concatenate([part[n] for part in parts]) if parts else np.array([]) for n in (1, 2))
    made = bought(request, score, kept.astype(bool))
    if made is None:
        return None
    spent = sum(part[3] for part in parts)
    drafted = any(record.drafted for record in looked.records)
    return Ranked(by, made, spent, plan.counts.undrafted, drafted, looked.seen, looked.candidates)


def _read(output: str, record: CommitRecord, by: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Of the scored candidates of a shard the request, the score and whether it is kept; and the price of all."""
    table = ShardReader(output, record).glance(("key", "selected", "unet_evaluations", by))
    request = pc.cast(pc.list_element(pc.split_pattern(table["key"], "-"), 1), "int64").to_numpy()
    score = table[by].to_numpy().astype(np.float32, copy=False)
    scored = np.isfinite(score)
    kept = pc.fill_null(table["selected"], False).to_numpy()
    return request[scored], score[scored], kept[scored], pc.sum(table["unet_evaluations"]).as_py() or 0


def ranked_lines(ranked: Ranked) -> Iterator[str]:
    """For a person."""
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
        yield f"price        {ranked.evaluations:,} evaluations of the denoiser{share}"


def ranked_facts(ranked: Ranked) -> dict[str, Any]:
    """For a program; the margin is null of one request alone."""
    made = ranked.bought
    margin = made.margin if math.isfinite(made.margin) else None
    yields = [{"requests": share, "min_score": score} for share, score in made.yields.items()]
    return {**asdict(ranked), "bought": {**asdict(made), "margin": margin, "yields": yields}}
