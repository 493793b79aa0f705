"""Counts how often the denoiser is evaluated for a request: a step and an evaluation mean the same in every family."""

from dataclasses import dataclass
from typing import Literal

from promptmill.configs.schedulers import OWN, SchedulerKind, scheduler_kind
from promptmill.configs.step_caches import StepCache
from promptmill.manifests.requests import Request

GUIDED_ALWAYS = -1.0  # in place of the largest guidance scale without guidance, where every step is guided whatever the scales
StepsLeft = Literal["down", "up", "all"]

UNKNOWN = SchedulerKind("")  # a scheduler that the table has not, taken to evaluate once a step


@dataclass(frozen=True)
class Counting:
    """Holds the values of a model by which its evaluations are counted; the defaults are those of Stable Diffusion.

    Attributes:
        guided: Evaluations of a step with guidance: 1 where guidance is an input of the denoiser, 3 by text and picture.
        unguided: The largest guidance scale without guidance, or `GUIDED_ALWAYS`: by the text, and by a picture where there is one.
        steps_left: How many steps a strength leaves: its share rounded down or up, or all of them, in a schedule that is shorter.
        own: The scheduler that the model was saved with.
        negative_too: Whether a prior makes an embedding of the negative prompt as well, by as many evaluations.
        inner: Evaluations of a prior that is a part of the model itself, for each candidate.
    """

    guided: int = 2
    unguided: float = 1.0
    steps_left: StepsLeft = "down"
    own: SchedulerKind = UNKNOWN
    negative_too: bool = False
    inner: int = 0


STABLE_DIFFUSION = Counting()


def evaluations(request: Request, counting: Counting = STABLE_DIFFUSION) -> int:
    """Return how often the denoiser is evaluated for one candidate, as the metadata say it afterwards.

    Args:
        request: The request.
        counting: The values of its model.
    """
    calls = _kind(request, counting).evaluations(steps_of(request.steps, request.strength, counting.steps_left))
    return calls * _a_step(request, counting) + _of_prior(request, counting)


def cached_evaluations(request: Request, cache: StepCache, counting: Counting = STABLE_DIFFUSION) -> int:
    """Return how many of a candidate's evaluations a step cache answers, as the metadata say it afterwards."""
    kind = _kind(request, counting)
    steps = steps_of(request.steps, request.strength, counting.steps_left)
    answered = sum(cache.answers(step, steps * kind.order) for step in range(kind.evaluations(steps)))
    return answered * _a_step(request, counting)


def _kind(request: Request, counting: Counting) -> SchedulerKind:
    return counting.own if request.scheduler == OWN else scheduler_kind(request.scheduler)


def _a_step(request: Request, counting: Counting) -> int:
    """Return how often the denoiser is evaluated for a candidate each time that a scheduler asks."""
    if counting.unguided == GUIDED_ALWAYS:
        return 2 if request.init_image is None else 3
    # Guidance by text and picture is off where either is.
    holds = request.image_guidance_scale is None or request.image_guidance_scale >= 1
    each = counting.guided if request.guidance_scale > counting.unguided and holds else 1
    return 2 * each if request.is_led else each


def _of_prior(request: Request, counting: Counting) -> int:
    """Return how often the denoiser of a prior is evaluated for one candidate; 0 where the model has none."""
    guided = (request.prior_guidance_scale or 0.0) > 1.0
    # A negative prompt goes to the prior where it has an effect on one of the two models.
    effective = bool(request.negative_words) and (guided or request.guidance_scale > counting.unguided)
    each = (2 if guided else 1) * (2 if counting.negative_too and effective else 1)
    return counting.inner + (request.prior_steps or 0) * each


def steps_of(steps: int, strength: float | None, left: StepsLeft) -> int:
    """Return the steps that a strength leaves of a schedule, as diffusers' pipelines compute them."""
    if strength is None or left == "all":
        return steps
    share = min(steps * strength, steps)
    return steps - int(steps - share) if left == "up" else max(1, int(share))
