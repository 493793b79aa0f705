"""Ranks the candidates of a request by their scores, and says which are kept."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from configs.schema import Ranking
from configs.scorers import CLIP, Diversity
from pipelines.results import Scored
from shards.phash import colours, distance, phash, same_colours


def rank(scores: Sequence[float | None]) -> list[int | None]:
    """The place of each: 1 is the highest, equals by their index; None for one without a score.

    Args:
        scores: Of each candidate in order; None for one that failed.

    Raises:
        ValueError: A score is not finite.
    """
    if not all(math.isfinite(score) for score in scores if score is not None):
        raise ValueError(f"scores are finite numbers or None, not {list(scores)}")
    places: list[int | None] = [None] * len(scores)
    for place, (_, index) in enumerate(sorted((-score, index) for index, score in enumerate(scores) if score is not None), 1):
        places[index] = place
    return places


@dataclass(frozen=True)
class Choice:
    """What becomes of one candidate.

    Attributes:
        rank: 1 is the best; None for one that has no score.
        kept: Whether its image is.
        score: What ranks it: its rank score, or CLIP's where no other scorer is declared.
        rejected_for: Why it is not kept, though it has a score: `outranked`, `near_duplicate`, or the limit that it breaks, as
            `floor_clip`, `floor_NAME` or `ceiling_NAME`.
        near_duplicate_of: The index of the kept candidate that it is nearly the same as.
    """

    rank: int | None = None
    kept: bool = False
    score: float | None = None
    rejected_for: str | None = None
    near_duplicate_of: int | None = None


def rank_score(scored: Scored, ranking: Ranking) -> float:
    """What ranks a candidate: the weighted sum of its scores, rounded to fp32; CLIP's score where no other scorer is declared."""
    if not ranking.scorers:
        return scored.score
    of = {CLIP: scored.score, **scored.others}
    with np.errstate(over="ignore"):
        return float(np.float32(sum(weight * of[name] for name, weight in ranking.summands.items())))


def non_finite(scored: Scored, ranking: Ranking) -> str | None:
    """Which score of a candidate is no finite number, in words; None where all are."""
    named = {**{f"{name}_score": score for name, score in scored.others.items()}, "rank_score": rank_score(scored, ranking)}
    return next((f"{name} is {score}" for name, score in named.items() if not math.isfinite(score)), None)


def choose(scored: Sequence[Scored | None], images: Sequence[np.ndarray | None], keep: int, ranking: Ranking) -> list[Choice]:
    """Rank the candidates of a request, and keep the best that break no limit and are no near-duplicate of a better one kept.

    Args:
        scored: Of each candidate in order, finite; None for one that failed.
        images: (H, W, 3) uint8 each, where it has a score; looked at only where diversity asks for hashes.
        keep: How many are kept at most.

    Raises:
        ValueError: What ranks a candidate is not finite.
    """
    scores = [rank_score(one, ranking) if one else None for one in scored]
    chosen = [Choice(place, score=score) for place, score in zip(rank(scores), scores, strict=True)]
    shown = {index: one for index, one in enumerate(scored) if one}

    def look(index: int) -> Look:
        image = images[index]
        assert image is not None and ranking.diversity
        return Look.of(shown[index], image, ranking.diversity)

    best_first = sorted(shown, key=lambda index: chosen[index].rank or 0)
    broken = {index: broken_limit(one, ranking) for index, one in shown.items()}
    seen = told_apart([index for index in best_first if not broken[index]], look, keep, ranking.diversity)
    for index in best_first:
        if index not in seen:
            chosen[index] = replace(chosen[index], rejected_for=broken[index] or "outranked")
        elif (twin := seen[index]) is None:
            chosen[index] = replace(chosen[index], kept=True)
        else:
            chosen[index] = replace(chosen[index], rejected_for="near_duplicate", near_duplicate_of=twin)
    return chosen


def told_apart(
    best_first: Sequence[int], look: Callable[[int], "Look"], keep: int, diversity: Diversity | None
) -> dict[int, int | None]:
    """Go through candidates until so many are kept that no two of them are nearly the same.

    Args:
        best_first: Their indices.
        look: Of the candidate of an index; asked only where there is diversity.

    Returns:
        By index, of those gone through: None for one kept, else the kept one that it is nearly the same as.
    """
    if diversity is None:
        return dict.fromkeys(best_first[:keep])
    seen: dict[int, int | None] = {}
    kept: dict[int, Look] = {}
    for index in best_first:
        if len(kept) == keep:
            break
        mine = look(index)
        seen[index] = next((other for other, its in kept.items() if mine.is_like(its, diversity)), None)
        if seen[index] is None:
            kept[index] = mine
    return seen


def broken_limit(scored: Scored, ranking: Ranking) -> str | None:
    """The first limit that a candidate breaks, as `rejected_for` names it; None for one that may be kept."""
    if ranking.min_score is not None and scored.score < ranking.min_score:
        return f"floor_{CLIP}"
    for scorer in ranking.scorers:
        score = scored.others[scorer.name]
        if scorer.floor is not None and score < scorer.floor:
            return f"floor_{scorer.name}"
        if scorer.ceiling is not None and score > scorer.ceiling:
            return f"ceiling_{scorer.name}"
    return None


@dataclass(frozen=True)
class Look:
    """What tells whether two images are nearly the same, as far as it is asked for.

    Attributes:
        embedding: Unit vector, (D,) float32.
        hash, colours: As `shards.phash` has them.
    """

    embedding: np.ndarray
    hash: int = 0
    colours: np.ndarray | None = None

    @classmethod
    def of(cls, scored: Scored, image: np.ndarray, diversity: Diversity) -> "Look":
        """Args as in `choose`, of one candidate."""
        if diversity.hash is None:
            return cls(scored.embedding)
        picture = Image.fromarray(image)
        return cls(scored.embedding, phash(picture), colours(picture))

    def is_like(self, other: "Look", diversity: Diversity) -> bool:
        """Whether one of the two is superfluous."""
        if diversity.embedding is not None and float((self.embedding * other.embedding).sum()) > diversity.embedding:
            return True
        if diversity.hash is None or self.colours is None or other.colours is None:
            return False
        return distance(self.hash, other.hash) <= diversity.hash and same_colours(self.colours, other.colours)
