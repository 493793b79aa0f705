"""Defines drafts, candidates rendered with few steps from the same noise only to be ranked, and checks requests against a
cascade.
"""

from collections.abc import Sequence
from itertools import pairwise

from pydantic import Field

from promptmill.configs.parameters import MAX_CANDIDATES, MAX_STEPS, Scheduler, Strict
from promptmill.configs.schedulers import OWN, SCHEDULERS, scheduler_kind

MAX_DRAFTS = 8


class Draft(Strict):
    """Declares one draft: its steps, how many candidates of a request go on, and another sampler than the request's, if any."""

    steps: int = Field(ge=1, le=MAX_STEPS)
    keep: int = Field(ge=1, le=MAX_CANDIDATES)
    scheduler: Scheduler | None = None


def check_cascade(drafts: Sequence[Draft], stochastic: bool) -> None:
    """Raise ValueError where drafts are no cascade: each takes more steps than the one before and keeps fewer candidates.

    Args:
        drafts: The drafts in order.
        stochastic: Whether samplers that add noise of their own are allowed.
    """
    for number, (before, draft) in enumerate(pairwise(drafts), 1):
        if draft.steps <= before.steps:
            raise ValueError(f"drafts.{number}.steps: {draft.steps} are not more than the {before.steps} of the draft before it")
        if draft.keep >= before.keep:
            raise ValueError(f"drafts.{number}.keep: {draft.keep} of the {before.keep} that the draft before it keeps are all")
    check_noise(drafts, stochastic)


def check_noise(drafts: Sequence[Draft], stochastic: bool, eta: float = 0.0) -> None:
    """Raise ValueError where a draft's sampler adds noise of its own.

    Args:
        drafts: The drafts in order.
        stochastic: Whether such samplers are allowed.
        eta: The config's eta.
    """
    for number, draft in enumerate(drafts):
        if draft.scheduler and scheduler_kind(draft.scheduler).adds_noise(eta) and not stochastic:
            raise ValueError(f"drafts.{number}.scheduler: {_stochastic(draft.scheduler, eta)}")


def in_words(drafts: Sequence[Draft]) -> str:
    """Return a cascade in words: 8 steps keep 4, 12 steps of euler keep 2."""
    return ", ".join(f"{d.steps} steps{f' of {d.scheduler}' if d.scheduler else ''} keep {d.keep}" for d in drafts)


def applied(drafts: Sequence[Draft], candidates: int) -> list[int]:
    """Return the indices of the drafts that `candidates` candidates go through: a draft that would leave nobody out is skipped."""
    return [number for number, draft in enumerate(drafts) if draft.keep < candidates]


def misfits(
    drafts: Sequence[Draft],
    stochastic: bool,
    *,
    candidates: int,
    keep: int,
    steps: int,
    strength: float | None,
    scheduler: str,
    eta: float = 0.0,
) -> list[str]:
    """List the problems of a request with a cascade, as `column: what is wrong`; none where no draft applies to the request.

    Args:
        drafts: The cascade.
        stochastic: Whether samplers that add noise of their own are allowed.
        candidates: Candidates that are rendered at a time.
        keep, steps, strength, scheduler: The request's columns.
        eta: The config's eta.
    """
    some = [drafts[number] for number in applied(drafts, candidates)]
    if not some:
        return []
    first, last = some[0], some[-1]
    wrong = []
    if keep > last.keep:
        wrong.append(f"keep: {keep} are more than the {last.keep} that ranking.drafts finish")
    if steps <= last.steps:
        wrong.append(f"steps: {steps} are not more than the {last.steps} of a draft; ranking.drafts need longer finals")
    if strength is not None and strength * first.steps < 1:
        wrong.append(f"strength: {strength:g} of the {first.steps} steps of a draft is less than one step; raise one of them")
    if scheduler_kind(scheduler).adds_noise(eta) and not stochastic:
        wrong.append(f"scheduler: {_stochastic(scheduler, eta)}")
    return wrong


def _stochastic(scheduler: str, eta: float) -> str:
    plain = ", ".join(name for name, kind in SCHEDULERS.items() if not kind.adds_noise(eta))
    adds = "may add" if scheduler == OWN else "adds"
    return (
        f"{scheduler} {adds} noise of its own at every step, so that a draft says little of its final;"
        f" take one of {plain}, or, where calibration shows that it pays, set ranking.drafts_stochastic"
    )
