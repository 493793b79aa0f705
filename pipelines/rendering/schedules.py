"""Makes the schedulers that a config asks for, and tries whether a schedule of so many steps can be taken at all."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from promptmill.configs.scheduler_options import SchedulerOptions
from promptmill.configs.schedulers import OWN, SCHEDULERS
from promptmill.pipelines.models.scheduler_options import FLOW_MATCH, class_of, is_flow
from promptmill.pipelines.rendering.libraries import diffusers, of_diffusers
from promptmill.pipelines.work.errors import ModelError

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}  # what tells a solver of noise to follow a flow
SHIFTED = 1.0  # mu, by which pipelines shift a flow's timesteps with the size of images: any will do to try a schedule


def scheduler_of(name: str, config: Mapping[str, Any], options: SchedulerOptions) -> Any:
    """Return a scheduler of diffusers by its short name.

    Args:
        name: As `scheduler_name` returns it.
        config: The config of the scheduler that the model was saved with.
        options: The config's options of schedulers.

    Raises:
        ModelError: The scheduler has no class for what the model follows.
    """
    class_name = class_of(name, config)
    if class_name is None:
        raise ModelError(f"scheduler {name}: does not follow {'flows' if is_flow(config) else 'the noise of EDM'}")
    said = options.of_config
    if is_flow(config):
        # Solvers of noise and of flows call the same number by two names.
        solves = class_name.startswith(FLOW_MATCH)
        shift = said.pop("shift", None if name == OWN else config.get("shift", config.get("flow_shift", 1.0)))
        said |= {} if shift is None else {"shift" if solves else "flow_shift": shift}
        said |= {} if solves or name == OWN else FLOW
    named = {} if name == OWN else SCHEDULERS[name].options
    return of_diffusers(class_name).from_config(config, **{**named, **said})


@contextmanager
def unsaid() -> Iterator[None]:
    """Keep to itself what diffusers, numpy and torch warn of while schedules are tried."""
    verbosity = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers.utils.logging.set_verbosity(verbosity)


@torch.no_grad()
def why_not(scheduler: Any, options: SchedulerOptions, steps: int, left: int, strength: float | None = None) -> str | None:
    """Return why diffusers' scheduler cannot take a schedule, found by taking it with small random tensors; None where it can.

    Args:
        scheduler: The scheduler.
        options: The config's options of schedulers, with which it was made.
        steps: Steps of the schedule as a whole.
        left: The last steps, which are taken; the others are passed over, as pipelines that begin with a picture do.
        strength: Given where the pipelines have the scheduler shorten the schedule instead.
    """
    random = torch.Generator().manual_seed(0)
    # Of pixels a model may predict the variance, too, in as many channels more.
    predicted = 6 if scheduler.config.get("variance_type") in ("learned", "learned_range") else 3
    drawn = {"generator": random} if "generator" in inspect.signature(scheduler.step).parameters else {}
    try:
        mu = {"mu": SHIFTED} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(steps, **mu, **({} if strength is None else {"strength": strength}))
        begin = (steps - left) * scheduler.order
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        sample = torch.randn(1, 3, 2, 2, generator=random) * getattr(scheduler, "init_noise_sigma", 1.0)
        most = scheduler.config.num_train_timesteps - 1 if options.steps_offset else float("inf")
        for timestep in scheduler.timesteps[begin:]:
            if timestep > most:
                return f"its steps begin at timestep {float(timestep):g}, and the model knows those up to {most}"
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(sample, timestep)
            said = torch.randn(1, predicted, 2, 2, generator=random)
            sample = scheduler.step(said, timestep, sample, **drawn, return_dict=False)[0]
            if not sample.isfinite().all():
                return "it divides by zero"
    except Exception as error:  # schedulers raise nearly anything where a schedule is not for them
        return _reason(scheduler, steps, error)
    return None


def _reason(scheduler: Any, steps: int, error: Exception) -> str:
    original = scheduler.config.get("original_inference_steps")
    if original is not None and "original_steps" in str(error):
        return f"original_inference_steps is {original}, of which it takes some"
    if steps > (trained := scheduler.config.num_train_timesteps):
        return f"the model was trained with {trained}"
    timesteps = scheduler.timesteps.tolist()
    meant = isinstance(error, ValueError | NotImplementedError)  # said by the scheduler itself
    if not meant and scheduler.order == 1 and len({*timesteps}) < len(timesteps):
        return "two of them fall on one timestep"
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def steps_before(scheduler: Any, steps: int, switch: float, strength: float | None = None) -> int:
    """Return how many steps of a schedule a base takes before its refiner, by the timesteps, as diffusers' pipelines count them.

    Args:
        scheduler: A scheduler of the schedule, which stays as it is.
        steps: Steps of the schedule as a whole.
        switch: The share of the trained timesteps, from noise on, that is the base's.
        strength: The share of the steps that is left where images begin with a picture.

    Raises:
        ValueError: One of the two models would have no step.
    """
    schedule = type(scheduler).from_config(scheduler.config)
    schedule.set_timesteps(steps)
    trained = schedule.config.num_train_timesteps
    left = schedule.timesteps[steps - min(int(steps * (strength or 1.0)), steps) :]
    before = int((left >= round(trained - switch * trained)).sum())
    if not 0 < before < len(left):
        side, higher = ("after", "") if before else ("before", " a higher strength," if strength else "")
        said = f"of {len(left)} steps none is {side} model.refiner.switch {switch:g}"
        raise ValueError(f"{said}; take more steps,{higher} or another switch")
    return before
