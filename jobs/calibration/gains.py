"""Computes how much of the gain by ranking policies keep, and at what price, with intervals from resampling requests."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from promptmill.jobs.calibration.policies import Policy, Trial, outcome, sight_of

RESAMPLES = 2000
FOLDS = 5


@dataclass(frozen=True)
class Measure:
    """Holds a figure and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gains:
    """Holds the results of R requests under each of P policies.

    The gain of a request is the mean score of its kept candidates, less the mean of all its candidates. Shares are of sums over
    requests: a share of the gain by all candidates in full, and a share of their price.

    Attributes:
        prices: (P, R), evaluations of the denoiser; `full_price`, (R,), of all candidates in full.
        gains: (P, R) by the scorer's name; `full`, (R,), of all candidates in full.
    """

    policies: Sequence[Policy]
    prices: np.ndarray
    full_price: np.ndarray
    gains: dict[str, np.ndarray]
    full: dict[str, np.ndarray]

    @classmethod
    def of(cls, trials: Sequence[Trial], policies: Sequence[Policy]) -> "Gains":
        """Compute every policy's result on every trial, whose scores are all by the same scorers."""
        names = list(trials[0].scores)
        whole = [outcome(trial, None) for trial in trials]
        tried = [[outcome(trial, policy) for trial in trials] for policy in policies]
        gains = {
            name: np.array(
                [
                    [_gain(t, name, kept, policy) for t, (kept, _) in zip(trials, row, strict=True)]
                    for policy, row in zip(policies, tried, strict=True)
                ]
            )
            for name in names
        }
        return cls(
            policies,
            np.array([[price for _, price in row] for row in tried], float).reshape(len(policies), len(trials)),
            np.array([price for _, price in whole], float),
            {name: some.reshape(len(policies), len(trials)) for name, some in gains.items()},
            {name: np.array([_gain(t, name, kept) for t, (kept, _) in zip(trials, whole, strict=True)]) for name in names},
        )

    @property
    def requests(self) -> int:
        return len(self.full_price)

    def some(self, requests: np.ndarray) -> "Gains":
        """Return the gains of some requests alone, given by their indices."""
        gains = {name: of[:, requests] for name, of in self.gains.items()}
        full = {name: of[requests] for name, of in self.full.items()}
        return Gains(self.policies, self.prices[:, requests], self.full_price[requests], gains, full)

    @cached_property
    def price(self) -> np.ndarray:
        """Return the share of the full price that each policy takes, (P,)."""
        return self.prices.sum(1) / self.full_price.sum()

    def share(self, score: str) -> np.ndarray:
        """Return the share of the gain that each policy keeps, (P,); NaN where there is no gain."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.gains[score].sum(1) / self.full[score].sum()

    @cached_property
    def measures(self) -> dict[str, list[Measure]]:
        """Return by the scorer's name the share of the gain that each policy keeps."""
        made = {}
        for name in self.gains:
            low, high = self.interval(name)
            made[name] = [Measure(*map(float, of)) for of in zip(self.share(name), low, high, strict=True)]
        return made

    def interval(self, score: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the 95% intervals of the shares, (P,) each (percentile bootstrap over requests, Efron 1979)."""
        weights = _resampled(self.requests)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = (weights @ self.gains[score].T) / (weights @ self.full[score])[:, None]
        low, high = np.quantile(shares, (0.025, 0.975), axis=0)
        return low, high

    def gain(self, score: str) -> Measure:
        """Return the mean gain by all candidates in full."""
        return measured(self.full[score])

    def cheapest(self, score: str, wanted: float) -> int | None:
        """Return the index of the cheapest policy that is shown to keep `wanted` of the gain for less than the full price, or None.

        None is also the answer where no gain is shown at all. The lower end of the 95% interval has to reach `wanted` after one
        more request of which nothing is kept: where by chance no request of a small sample loses anything, the interval has no
        width, which says nothing of the next request.
        """
        if self.gain(score).low <= 0:
            return None
        least = self.interval(score)[0] * self.requests / (self.requests + 1)
        enough = np.flatnonzero((least >= wanted - 1e-9) & (self.price < 1))
        return int(min(enough, key=lambda place: (self.price[place], -self.share(score)[place]))) if len(enough) else None

    def frontier(self, score: str) -> list[int]:
        """Return the indices of the policies that keep more than every cheaper one, the cheapest first."""
        shares, found, most = self.share(score), [], -np.inf
        for place in sorted(range(len(self.policies)), key=lambda place: (self.price[place], -shares[place])):
            if shares[place] > most and self.price[place] < 1:
                found.append(place)
                most = shares[place]
        return found


@dataclass(frozen=True)
class HeldOut:
    """Holds how well the choice itself does: chosen on four fifths of the requests, judged on the others, for each fifth."""

    price: float
    gains: dict[str, Measure]


def fewest(wanted: float) -> int:
    """Return how many requests can show that a policy keeps a share `wanted`, if no request loses anything."""
    return math.ceil(wanted / (1 - wanted) - 1e-9)


def held_out(gains: Gains, score: str, wanted: float) -> HeldOut | None:
    """Judge the choice of `Gains.cheapest` on requests that had no part in it; a fold without any choice renders all in full.

    The result is None for fewer than ten requests, and where a sample without one fold is too small to choose by.
    """
    if gains.requests < 2 * FOLDS or gains.requests * (FOLDS - 1) // FOLDS < fewest(wanted):
        return None
    return judged_apart(gains, lambda some: some.cheapest(score, wanted))


def judged_apart(gains: Gains, choose: Callable[[Gains], int | None]) -> HeldOut:
    """Judge a choice by cross-validation: made on four fifths of the requests, judged on the other fifth, for each fifth."""
    price, kept = gains.full_price.copy(), {name: full.copy() for name, full in gains.full.items()}
    numbers = np.arange(gains.requests)
    for fold in range(FOLDS):
        apart = numbers % FOLDS == fold
        place = choose(gains.some(numbers[~apart]))
        if place is not None:
            price[apart] = gains.prices[place, apart]
            for name in kept:
                kept[name][apart] = gains.gains[name][place, apart]
    chosen = Gains([gains.policies[0]], price[None], gains.full_price, {name: of[None] for name, of in kept.items()}, gains.full)
    return HeldOut(float(chosen.price[0]), {name: of[0] for name, of in chosen.measures.items()})


def measured(values: np.ndarray) -> Measure:
    """Return the mean of values, (R,), with its percentile bootstrap interval."""
    means = _resampled(len(values)) @ values
    return Measure(float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975)))


@lru_cache(maxsize=8)
def _resampled(requests: int) -> np.ndarray:
    """Return the weight of each request in each resample, (RESAMPLES, requests); the same every time."""
    return np.random.default_rng(0).multinomial(requests, np.full(requests, 1 / requests), RESAMPLES) / requests


def _gain(trial: Trial, score: str, kept: Sequence[int], policy: Policy | None = None) -> float:
    there = [of for of in trial.scores[score] if of is not None]
    # Images by a step cache are others than those without, and have scores of their own.
    scores = trial.sights[sight_of(policy.kind, policy.cache)].scores if policy and policy.cache else trial.scores
    values = [of for index in kept if (of := scores[score][index]) is not None]
    # Where nothing is left to keep nothing is gained.
    return float(np.mean(values) - np.mean(there)) if values else 0.0
