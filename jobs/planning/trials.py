"""Tries the schedules that rows ask for, where some may fail in diffusers: such a row is bad before anything renders.

Only a try imports torch and diffusers. A plan without odd schedules tries none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptmill.configs.model import Model
from promptmill.configs.scheduler_options import SIGMAS, SchedulerOptions
from promptmill.pipelines.models.capabilities import ModelFacts
from promptmill.pipelines.models.scheduler_options import class_of
from promptmill.pipelines.work.evaluations import StepsLeft, steps_of

# Odd schedules that a plan tries, at up to a fifth of a second each; a further one that cannot be taken fails as it renders.
MOST = 500
SAFE_STEPS = 250  # up to which no scheduler fails by the steps alone, but for those of `DISTILLED`
ENDLESS = "DDPMWuerstchenScheduler"  # has timesteps between any two
# The schedulers that skip among few steps, of a number that their config may set, and how many steps each takes in any case.
DISTILLED = {"LCMScheduler": 10, "TCDScheduler": 10, "CMStochasticIterativeScheduler": 10}
ODD = ("rescale_betas_zero_snr", *SIGMAS)  # of a model's own scheduler: what makes some schedules fail


@dataclass(frozen=True)
class Trials:
    """Tries schedules, each once.

    Attributes:
        saved: The config of the scheduler that the model was saved with.
        options: The config's options of schedulers.
        steps_left: How many steps of a schedule a strength leaves.
        switch: The share of the trained timesteps after which a refiner takes over; None without a refiner.
    """

    saved: Mapping[str, Any]
    options: SchedulerOptions
    steps_left: StepsLeft
    switch: float | None = None
    _tried: dict[tuple[str, int, int, float | None], str | None] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, model: Model, facts: ModelFacts) -> "Trials":
        """Return the trials of the schedules of a model."""
        switch = model.refiner.switch if model.refiner else None
        return cls(facts.saved_scheduler, model.scheduler_options, facts.counting.steps_left, switch)

    def __call__(self, scheduler: str, steps: int, strength: float | None) -> str | None:
        """Return why a schedule cannot be taken, None where it can.

        Args:
            scheduler: Its short name; the scheduler fits the model, and so do its options.
            steps: Steps of the schedule as a whole.
            strength: The share of them that is left where images begin with a picture.
        """
        if not self._may_fail(scheduler, steps, strength):
            return None
        left = steps_of(steps, strength, self.steps_left)
        shortened = strength if self.steps_left == "all" else None
        key = (scheduler, steps, left, shortened)
        if key not in self._tried:
            if len(self._tried) >= MOST:
                return None
            self._tried[key] = self._try(*key, strength)
        return self._tried[key]

    def _may_fail(self, scheduler: str, steps: int, strength: float | None) -> bool:
        class_name = str(class_of(scheduler, self.saved))
        odd = self.options.given or any(self.saved.get(option) for option in ODD) or self.switch is not None
        distilled = steps > DISTILLED.get(class_name, SAFE_STEPS) or (strength is not None and self.steps_left == "all")
        return class_name != ENDLESS and (bool(odd) or steps > SAFE_STEPS or distilled)

    def _try(self, scheduler: str, steps: int, left: int, shortened: float | None, strength: float | None) -> str | None:
        # Only a schedule that may fail needs torch in a planning process.
        from promptmill.pipelines.rendering.schedules import scheduler_of, steps_before, unsaid, why_not

        with unsaid():
            made = scheduler_of(scheduler, self.saved, self.options)
            if (reason := why_not(made, self.options, steps, left, shortened)) is not None:
                weaker = f" at a strength of {shortened:g}" if shortened is not None else ""
                options = ", ".join(f"{name}: {value}" for name, value in self.options.given.items())
                set_to = f", with {options} of model.scheduler_options" if options else ""
                return f"{scheduler} ({type(made).__name__}) cannot take {steps} steps{weaker}{set_to}: {reason}"
            try:
                if self.switch is not None:
                    steps_before(made, steps, self.switch, strength)
            except ValueError as error:
                return str(error)
        return None
