"""Finds the batch size for a model on this hardware: the largest that fits, and the smallest that is about as fast as any."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from promptmill.configs.model import Model
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.control_maps import ControlMaps
from promptmill.pipelines.rendering.loaded_model import LoadedModel
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.rendering.preparing import Conditioning, jobs_of, prepare_request
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.errors import is_out_of_memory
from promptmill.pipelines.work.units import Placed

STEPS = 3  # of the timed images: decoding weighs more than in a real run, so that its memory is seen too
BATCHES = 2  # timed, after one to warm up
PAYS = 0.95  # of the best rate: a smaller batch that reaches it is taken, since it drains less


@dataclass(frozen=True)
class Trial:
    """Holds the result of one batch size: images a second at few steps, and peak bytes on a GPU; None where it did not fit."""

    batch: int
    images_s: float | None
    memory: int | None = None


@dataclass(frozen=True)
class Tuned:
    """Holds the trials in order, and the batch size that pays."""

    trials: tuple[Trial, ...]
    batch: int


def tune(model: Model, placed: Placed, job_seed: int, roots: Roots, batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> Tuned:
    """Render a request at growing batch sizes until one does not fit, or two in a row bring nothing.

    Raises:
        ModelError: The model cannot be loaded.
        ValueError: The request's images cannot be used, it cannot be rendered, or not even the smallest batch fits.
    """
    loaded = load_model(model)
    prepared = prepare_request(placed, roots, loaded.family.enlarges, loaded.encoded, ControlMaps(loaded.annotators))
    if not isinstance(prepared, Conditioning):
        raise ValueError(f"{placed.request.id}: {prepared.failure.message if prepared.failure else 'cannot be used'}")
    trials: list[Trial] = []
    with torch.no_grad():
        for batch in batches:
            path, steps = Slots(loaded, batch), few_steps(loaded)
            try:
                trials.append(_try(path, placed, prepared, job_seed, batch, steps))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                trials.append(Trial(batch, None))
                break
            finally:
                path.close()
            rates = [trial.images_s or 0.0 for trial in trials]
            if len(rates) > 2 and max(rates[-2:]) < max(rates[:-2]) / PAYS:
                break
    return choose(trials)


def choose(trials: Sequence[Trial]) -> Tuned:
    """Return the trials with the smallest batch that reaches `PAYS` of the best rate.

    Raises:
        ValueError: No batch fits into memory.
    """
    fit = [(trial.batch, trial.images_s) for trial in trials if trial.images_s is not None]
    if not fit:
        raise ValueError(f"not even a batch of {trials[0].batch} fits into memory")
    best = max(rate for _, rate in fit)
    return Tuned(tuple(trials), min(batch for batch, rate in fit if rate >= PAYS * best))


def few_steps(model: LoadedModel) -> int:
    """Return the steps of images that are only timed: where a refiner takes the last of them, so many that both have some."""
    share = min(model.refiner.switch, 1 - model.refiner.switch) if model.refiner else 1.0
    return math.ceil(STEPS / share)


def _try(path: Slots, placed: Placed, prepared: Conditioning, job_seed: int, batch: int, steps: int) -> Trial:
    request = replace(placed.request, steps=steps, strength=1.0 if placed.request.strength else None, candidates=batch)
    seconds = 0.0
    for number in range(1 + BATCHES):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        failures = path.run(jobs_of(replace(placed, request=request), prepared, job_seed))
        if failures:
            raise ValueError(f"{request.id}: {failures[0].message}")
        if number:
            seconds += time.monotonic() - started
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return Trial(batch, BATCHES * batch / seconds, memory)
