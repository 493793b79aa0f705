"""Ranks the candidates of a request by their scores, and chooses which are kept."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from promptmill.configs.schema import Ranking
from promptmill.configs.scorers import CLIP, Diversity
from promptmill.pipelines.work.results import Scored
from promptmill.shards.perceptual_hash import colours, distance, phash, same_colours

ROUNDING = 1e-4  # of cosines in fp32, with room to spare


def rank(scores: Sequence[float | None]) -> list[int | None]:
    """Return the rank of each candidate: 1 is the highest, equals by their index; None for one without a score.

    Args:
        scores: Scores of the candidates in order; None for one that failed.

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
    """Holds the choice for one candidate.

    Attributes:
        rank: 1 is the best; None for one that has no score.
        kept: Whether the candidate's image is kept.
        score: The rank score, or CLIP's score where no other scorer is declared.
        rejected_for: Why the candidate is not kept, though it has a score: `outranked`, `near_duplicate`, or the limit that it
            breaks, as `floor_clip`, `floor_NAME` or `ceiling_NAME`.
        near_duplicate_of: The index of the kept candidate that this one is nearly the same as.
    """

    rank: int | None = None
    kept: bool = False
    score: float | None = None
    rejected_for: str | None = None
    near_duplicate_of: int | None = None


def rank_score(scored: Scored, ranking: Ranking) -> float:
    """Return a candidate's rank score: the weighted sum of its scores, rounded to fp32; CLIP's where no other is declared."""
    if not ranking.scorers:
        return scored.score
    of = {CLIP: scored.score, **scored.others}
    with np.errstate(over="ignore"):
        return float(np.float32(sum(weight * of[name] for name, weight in ranking.summands.items())))


def non_finite(scored: Scored, ranking: Ranking) -> str | None:
    """Return the words for a score of a candidate that is not finite; None where all are finite."""
    named = {**{f"{name}_score": score for name, score in scored.others.items()}, "rank_score": rank_score(scored, ranking)}
    return next((f"{name} is {score}" for name, score in named.items() if not math.isfinite(score)), None)


def choose(scored: Sequence[Scored | None], images: Sequence[np.ndarray | None], keep: int, ranking: Ranking) -> list[Choice]:
    """Rank the candidates of a request, and keep the best that break no limit and are no near-duplicate of a better one kept.

    Args:
        scored: Scores of the candidates in order, finite; None for one that failed.
        images: (H, W, 3) uint8 each, where a candidate has a score; used only where diversity asks for hashes.
        keep: How many are kept at most.
        ranking: The config's ranking.

    Raises:
        ValueError: A rank score is not finite.
    """
    return decide(scored, looking(scored, images, ranking), keep, ranking)


def looking(scored: Sequence[Scored | None], images: Sequence[np.ndarray | None], ranking: Ranking) -> "Callable[[int], Look]":
    """Return a function that gives the look of the candidate of an index, by its scores and its image; arguments as in `choose`."""

    def look(index: int) -> Look:
        one, image = scored[index], images[index]
        assert one is not None and image is not None and ranking.diversity
        return Look.of(one, image, ranking.diversity)

    return look


def decide(scored: Sequence[Scored | None], look: "Callable[[int], Look]", keep: int, ranking: Ranking) -> list[Choice]:
    """Rank candidates and choose the kept ones, as `choose`, but without images: `look` returns a candidate's look by its index."""
    scores = [rank_score(one, ranking) if one else None for one in scored]
    chosen = [Choice(place, score=score) for place, score in zip(rank(scores), scores, strict=True)]
    shown = {index: one for index, one in enumerate(scored) if one}
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


def contenders(
    scored: Sequence[Scored | None],
    look: "Callable[[int], Look]",
    keep: int,
    ranking: Ranking,
    ahead: Sequence[float] = (),
) -> list[int]:
    """Return the candidates of a slice that may still be kept, or be compared with a kept one, once all others are known.

    Candidates are gone through from the best to the worst, in the slice in the same order as among all. Without diversity, those
    behind `keep` others that break no limit are never reached.

    With diversity a candidate of the slice that is rejected for a better one of the slice may be kept in the end, since a third may
    have rejected that better one. So the slice's own choice rules nobody out. But call two images far apart where no third image
    can be like both. Let F be images of the slice that break no limit and are far apart from each other, all better than candidate
    c. If c is reached, less than `keep` were kept before it, and each of F was reached: it was kept, or it is like an image kept.
    With one sign of likeness no kept image answers for two of F, so F has less than `keep` members. With two signs a kept image may
    answer for two of F, for one by each sign, so F has less than 2 `keep` - 1. Once F is as large, all behind it are ruled out.

    Args:
        scored, look, keep, ranking: As in `decide`, of the slice.
        ahead: Rank scores of other candidates, of lower indices and within all limits, that are known already. Diversity disregards
            these.

    Returns:
        Indices of the candidates, the best first.
    """
    scores = {index: rank_score(one, ranking) for index, one in enumerate(scored) if one and not broken_limit(one, ranking)}
    best_first = sorted(scores, key=lambda index: (-scores[index], index))
    diversity = ranking.diversity
    if diversity is None:
        better = sorted(ahead, reverse=True)[:keep]
        return [
            index for place, index in enumerate(best_first[:keep]) if place + sum(other >= scores[index] for other in better) < keep
        ]
    signs = sum(sign is not None for sign in (diversity.embedding, diversity.hash))
    apart: list[Look] = []
    for place, index in enumerate(best_first):
        mine = look(index)
        if all(mine.is_far_from(other, diversity) for other in apart):
            apart.append(mine)
        if len(apart) == signs * (keep - 1) + 1:
            return best_first[: place + 1]
    return best_first


def told_apart(
    best_first: Sequence[int], look: Callable[[int], "Look"], keep: int, diversity: Diversity | None
) -> dict[int, int | None]:
    """Go through candidates until `keep` are kept of which no two are nearly the same.

    Args:
        best_first: Indices of the candidates.
        look: Returns the look of the candidate of an index; called only where there is diversity.
        keep: How many are kept at most.
        diversity: When two images are nearly the same; None: never.

    Returns:
        By index, of the candidates gone through: None for a kept one, else the kept one that it is nearly the same as.
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
    """Return the first limit that a candidate breaks, as `rejected_for` names it; None for one that may be kept."""
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
    """Holds the values that tell whether two images are nearly the same, as far as diversity asks for them.

    Attributes:
        embedding: Unit vector, (D,) float32.
        hash, colours: As `shards.perceptual_hash` has them.
    """

    embedding: np.ndarray
    hash: int = 0
    colours: np.ndarray | None = None

    @classmethod
    def of(cls, scored: Scored, image: np.ndarray, diversity: Diversity) -> "Look":
        """Return the look of one candidate; arguments as in `choose`."""
        if diversity.hash is None:
            return cls(scored.embedding)
        picture = Image.fromarray(image)
        return cls(scored.embedding, phash(picture), colours(picture))

    def is_like(self, other: "Look", diversity: Diversity) -> bool:
        """Return whether one of the two images is superfluous."""
        if diversity.embedding is not None and float((self.embedding * other.embedding).sum()) > diversity.embedding:
            return True
        if diversity.hash is None or self.colours is None or other.colours is None:
            return False
        return distance(self.hash, other.hash) <= diversity.hash and same_colours(self.colours, other.colours)

    def is_far_from(self, other: "Look", diversity: Diversity) -> bool:
        """Return whether no image can be like both by the same sign; where this cannot be told, the result is False.

        The angle between two embeddings is at most the sum of their angles to a third, and the same holds for the bits of hashes.
        """
        if diversity.embedding is not None:
            twice = 2 * diversity.embedding**2 - 1  # the cosine of twice the angle
            if diversity.embedding < 0 or float((self.embedding * other.embedding).sum()) > twice - ROUNDING:
                return False
        return diversity.hash is None or distance(self.hash, other.hash) > 2 * diversity.hash
