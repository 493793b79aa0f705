"""Shares the steps of an image between two denoisers: the base removes most of the noise, a refiner the rest."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from promptmill.pipelines.rendering.schedules import steps_before


@dataclass(frozen=True)
class Refiner:
    """Holds a pipeline that takes the last steps of each image, as one of two experts (arXiv:2211.01324; SDXL: arXiv:2307.01952).

    Attributes:
        pipeline: The pipeline, whose VAE and text encoder are those of the base.
        switch: The share of the trained timesteps, from noise on, that is the base's.
    """

    pipeline: Any
    switch: float

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.pipeline.unet

    def following(self, scheduler: Any) -> Any:
        """Return the pipeline with a scheduler of its own, for the rest of the schedule of the base's scheduler.

        What the refiner predicts (noise or velocity) is its own. All else is as in the base, so that the refiner goes on where the
        base stops.
        """
        # A pipeline keeps its scheduler and some of its arguments on itself.
        own = copy.copy(self.pipeline)
        predicts = self.pipeline.scheduler.config.prediction_type
        own.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=predicts)
        return own

    def steps_before(self, scheduler: Any, steps: int, strength: float | None = None) -> int:
        """Return how many steps of a schedule the base takes; arguments and errors are those of `schedules.steps_before`."""
        return steps_before(scheduler, steps, self.switch, strength)
