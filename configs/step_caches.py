"""Defines the step cache: at which steps of an image the outer blocks of the denoiser run alone."""

from pydantic import Field

from promptmill.configs.parameters import Strict


class StepCache(Strict):
    """Declares the steps at which the outer blocks run alone, and take what the inner blocks made at an earlier step.

    The schedule is a function of a step's number and of the number of steps, so that an image depends on nothing beside it.
    """

    every: int = Field(ge=2, le=100, description="One of so many steps runs all blocks.")
    first: float = Field(0.25, ge=0, le=1, description="The share of the steps at the beginning that run all blocks.")
    last: float = Field(0.0, ge=0, le=1, description="The share of the steps at the end that run all blocks.")

    def answers(self, step: int, steps: int) -> bool:
        """Return whether a step, counted from 0, of so many is answered from the cache; the first never is."""
        begin = max(1, round(self.first * steps))
        return begin <= step < steps - round(self.last * steps) and (step - begin + 1) % self.every != 0

    def __str__(self) -> str:
        return f"every {self.every} from {self.first:g}" + (f" to {1 - self.last:g}" if self.last else "")
