"""Reads the metadata of a dataset, a shard at a time, into the little that a report keeps of it."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from promptmill.configs.columns import CLIP_SCORE, EMBEDDING
from promptmill.jobs.figures.sampling import Sample, spread
from promptmill.shards.commits import CommitRecord
from promptmill.shards.finished import ShardReader, UnreadableError

READERS = 8  # shards under way at a time
SHOWN = 24  # images, at most, in each contact sheet

_NEEDED = (
    "key",
    "candidate_index",
    "selected",
    "status",
    "error",
    "prompt",
    "mode",
    "width",
    "height",
    "steps",
    "scheduler",
    "prompt_truncated",
    "unet_evaluations",
    "pixel_sha256",
)
_OF_REQUESTS = ("mode", "width", "height", "steps", "scheduler", "prompt", "prompt_truncated")


@dataclass(frozen=True)
class Digest:
    """What a report keeps of one shard.

    Attributes:
        requests: In it.
        request, score, kept: (M,) int64, float32, bool: of each scored candidate, those of a request together; by the score that
            ranks.
        mode, length: (R,) of each request; str objects, and characters of the prompt, int64.
        sizes, steps, schedulers: Of rendered requests.
        truncated: Requests whose prompts were cut.
        evaluations: Of the denoiser, over all candidates.
        errors: By code and whether a request failed as a whole, how many of them or of candidates.
        keys: (K,) of the kept, bytes.
        pixels: (K,) uint64: the beginning of their pixel hashes.
        best, worst: The kept with the highest and the lowest scores, as score and key.
        failed: Keys of failed rows by code, some of each.
        across: Keys of kept rows, spread over the shard.
        embeddings: (K, D) float16 of the kept; None where they are not wanted or not there.
    """

    requests: int
    request: np.ndarray
    score: np.ndarray
    kept: np.ndarray
    mode: np.ndarray
    length: np.ndarray
    sizes: Counter[str]
    steps: Counter[int]
    schedulers: Counter[str]
    truncated: int
    evaluations: int
    errors: Counter[tuple[str, bool]]
    keys: np.ndarray
    pixels: np.ndarray
    best: Sequence[tuple[float, str]]
    worst: Sequence[tuple[float, str]]
    failed: dict[str, list[str]]
    across: Sequence[str]
    embeddings: np.ndarray | None


def read(output: str, sample: Sample, compared: Collection[int], score: str = CLIP_SCORE) -> Iterator[Digest | str]:
    """The digest of each shard in the sample, or what is wrong with it, in a line.

    Args:
        output: The dataset's URI.
        sample: The shards.
        compared: Those whose embeddings are wanted, by number.
        score: The column that ranks.
    """
    kept = sum(record.kept for record in sample.records)
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(
            lambda record: _read(output, record, record.shard in compared, -(-record.kept * SHOWN // max(1, kept)), score),
            sample.records,
        )


def _read(output: str, record: CommitRecord, embeddings: bool, across: int, score: str) -> Digest | str:
    wanted = (*_NEEDED, score)
    try:
        table = ShardReader(output, record).glance((*wanted, EMBEDDING) if embeddings else wanted)
    except UnreadableError as error:
        return str(error)
    try:
        return digest(table.select(wanted), table.select(("selected", EMBEDDING)) if embeddings else None, across, score)
    except (ValueError, TypeError, LookupError, pa.ArrowException) as error:
        return f"{record.paths['metadata']}: {' '.join(str(error).split())[:200]}"


def digest(table: pa.Table, vectors: pa.Table | None, across: int, ranks: str = CLIP_SCORE) -> Digest:
    """What is kept of a shard's metadata.

    Args:
        table: The columns that are needed.
        vectors: `selected` and `clip_embedding`, where wanted.
        across: How many keys of kept rows to spread over it.
        ranks: The column that ranks.

    Raises:
        ValueError, TypeError, LookupError, pa.ArrowException: A column holds something else than ours do.
    """
    row = pc.cast(pc.list_element(pc.split_pattern(table["key"], "-"), 1), pa.int64()).to_numpy()
    new = np.diff(row, prepend=-1) != 0
    request = np.cumsum(new) - 1
    first = table.select(_OF_REQUESTS).take(pa.array(np.flatnonzero(new)))
    score = table[ranks].to_numpy().astype(np.float32, copy=False)
    scored = np.isfinite(score)
    is_kept = pc.fill_null(table["selected"], False).to_numpy()
    keys = table["key"].filter(pa.array(is_kept)).to_pylist()
    scores = score[is_kept].tolist()
    ranked = sorted((-score, key) for score, key in zip(scores, keys, strict=True) if np.isfinite(score))
    rendered = first.filter(pa.array(np.bincount(request, scored, minlength=len(first)) > 0))
    failed, errors = _failures(table)
    return Digest(
        requests=len(first),
        request=request[scored],
        score=score[scored],
        kept=is_kept[scored],
        mode=np.array(pc.fill_null(first["mode"], "").to_pylist(), object),
        length=pc.fill_null(pc.utf8_length(first["prompt"]), 0).to_numpy().astype(np.int64),
        sizes=Counter(f"{w}×{h}" for w, h in zip(rendered["width"].to_pylist(), rendered["height"].to_pylist(), strict=True)),
        steps=Counter(rendered["steps"].to_pylist()),
        schedulers=Counter(rendered["scheduler"].to_pylist()),
        truncated=pc.sum(rendered["prompt_truncated"]).as_py() or 0,
        evaluations=pc.sum(table["unet_evaluations"]).as_py() or 0,
        errors=errors,
        keys=np.array(keys, "S"),
        pixels=np.array(
            [int(sha256[:16], 16) for sha256 in table["pixel_sha256"].filter(pa.array(is_kept)).to_pylist()], np.uint64
        ),
        best=[(-negated, key) for negated, key in ranked[:SHOWN]],
        worst=[(-negated, key) for negated, key in ranked[: -SHOWN - 1 : -1]],
        failed=failed,
        across=spread(keys, across),
        embeddings=_embeddings(vectors) if vectors is not None else None,
    )


def _failures(table: pa.Table) -> tuple[dict[str, list[str]], Counter[tuple[str, bool]]]:
    """Some keys of failed rows by code; and by code and whether it was a request as a whole, how many there are."""
    rows = table.filter(pc.equal(table["status"], "failed"))
    keys: dict[str, list[str]] = {}
    errors: Counter[tuple[str, bool]] = Counter()
    columns = (rows[name].to_pylist() for name in ("key", "error", "candidate_index"))
    for key, error, candidate in zip(*columns, strict=True):
        code = error or "unknown"
        errors[code, candidate is None] += 1
        if len(keys.setdefault(code, [])) < SHOWN:
            keys[code].append(key)
    return keys, errors


def _embeddings(table: pa.Table) -> np.ndarray:
    """(K, D) float16 of the kept; NaN where a row has none."""
    kept = table.filter(table["selected"])[EMBEDDING].combine_chunks()
    made = np.full((len(kept), kept.type.list_size), np.nan, np.float16)
    valid = kept.is_valid().to_numpy(zero_copy_only=False)
    made[valid] = kept.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, made.shape[1])
    return made
