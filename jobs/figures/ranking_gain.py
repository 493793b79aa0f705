"""Computes the gain by ranking: the expected best of n candidates for each n, and the kept candidates against the mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LONGEST_CURVE = 64  # candidates
YIELDS = (0.95, 0.9, 0.75, 0.5, 0.25, 0.1)  # shares of the requests


@dataclass(frozen=True)
class Bought:
    """Holds the gain by ranking.

    Attributes:
        requests: Requests with two scored candidates or more, one of them kept.
        kept, mean: The mean score of the kept candidates, and of all candidates; each request counts once.
        gain, margin: Kept less mean, and half of its 95% confidence interval over requests.
        curve: The expected best score of 1, 2, … candidates, over `curve_requests` requests that have so many.
        yields: By a share of the requests with a scored candidate, the highest minimum score that leaves that share an image.
    """

    requests: int
    kept: float
    mean: float
    gain: float
    margin: float
    curve: Sequence[float]
    curve_requests: int
    yields: Mapping[float, float]


def weights(count: int, most: int) -> np.ndarray:
    """Return the chance of each of `count` scores, in ascending order, to be the best of n of them drawn without replacement.

    Of the C(count, n) subsets, C(i - 1, n - 1) have the i-th smallest as their best. So the sum over i of this weight and the score
    is the exact mean over all subsets; for scores of 0 and 1 that sum is the estimator of pass@k (arXiv:2107.03374, equation 1).

    Returns:
        (count, most) float64: a column for each n from 1 to `most`, which is at most `count`; each column sums to 1.
    """
    made = np.zeros((count, most))
    for n in range(1, most + 1):
        # C(i - 2, n - 1) is C(i - 1, n - 1) times (i - n) / (i - 1), down from n / count for the best of all.
        i = np.arange(count, n, -1)
        chances = np.cumprod(np.concatenate([[n / count], (i - n) / (i - 1)]))
        made[n - 1 :, n - 1] = chances[::-1]
    return made


def bought(request: np.ndarray, score: np.ndarray, kept: np.ndarray) -> Bought | None:
    """Compute the gain by ranking over scored candidates; None where no request has two.

    Args:
        request: (M,) integer: which request a candidate is of; candidates of one request stand together.
        score: (M,) floating.
        kept: (M,) bool.
    """
    if not len(request):
        return None
    starts = np.flatnonzero(np.diff(request, prepend=request[0] - 1))
    counts = np.diff(starts, append=len(request))
    scores = score.astype(np.float64)
    kept_counts = np.add.reduceat(kept.astype(np.int64), starts)
    ranked = (counts > 1) & (kept_counts > 0)
    if not ranked.any():
        return None
    means = (np.add.reduceat(scores, starts) / counts)[ranked]
    kept_means = np.add.reduceat(np.where(kept, scores, 0.0), starts)[ranked] / kept_counts[ranked]
    gains = kept_means - means
    margin = 1.96 * gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    curve, over = best_of(scores, starts, counts)
    best = -np.sort(-np.maximum.reduceat(scores, starts))
    yields = {share: float(best[math.ceil(share * len(best)) - 1]) for share in YIELDS}
    return Bought(
        len(gains), float(kept_means.mean()), float(means.mean()), float(gains.mean()), float(margin), curve, over, yields
    )


def best_of(scores: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[list[float], int]:
    """Return the expected best score of 1, 2, … N candidates, exactly, and the number of requests behind it.

    N is the most that at least half of the requests have, so that a few with fewer or more do not decide. All points are over the
    same requests, those with N or more.

    Args:
        scores: (M,), those of a request together.
        starts, counts: (R,): where each request begins, and how many candidates it has.
    """
    most = min(int(np.sort(counts)[len(counts) // 2]), LONGEST_CURVE)
    total, over = np.zeros(most), 0
    for count in np.unique(counts[counts >= most]):
        first = starts[counts == count]
        ascending = np.sort(scores[first[:, None] + np.arange(count)], axis=1)
        total += (ascending @ weights(int(count), most)).sum(axis=0)
        over += len(first)
    return (total / over).tolist(), over
