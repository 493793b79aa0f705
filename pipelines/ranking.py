"""Ranks the candidates of a request by their scores, and says which are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranked:
    """The place of one candidate: 1 is the best; None for one that has no score."""

    rank: int | None
    kept: bool


def rank(scores: Sequence[float | None], keep: int, min_score: float | None) -> list[Ranked]:
    """Rank by score, the higher first, equals by their index.

    Args:
        scores: Of each candidate in order; None for one that failed.
        keep: How many are kept at most.
        min_score: What a kept candidate reaches; one below is ranked all the same.

    Raises:
        ValueError: A score or the minimum is not finite, or `keep` is below 1.
    """
    numbers = [*scores, min_score]
    if not all(math.isfinite(number) for number in numbers if number is not None):
        raise ValueError(f"scores are finite numbers or None, not {list(scores)} with a minimum of {min_score}")
    if keep < 1:
        raise ValueError(f"keep is at least 1, not {keep}")
    scored = [(-score, index) for index, score in enumerate(scores) if score is not None]
    ranked = [Ranked(None, False)] * len(scores)
    for place, (negated, index) in enumerate(sorted(scored), 1):
        ranked[index] = Ranked(place, place <= keep and (min_score is None or -negated >= min_score))
    return ranked
