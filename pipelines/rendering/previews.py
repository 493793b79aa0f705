"""Makes previews: ends a trajectory early, and decodes the image that it predicted at that step (its x0).

Published pruning ranks candidates by previews. Calibration makes previews to compare drafts with; a run never does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch


@contextmanager
def ending_after(steps: int, pipeline: Any, strength: float | None = None) -> Iterator[Callable[..., dict[str, Any]]]:
    """Yield a `callback_on_step_end` that makes one call of a diffusers pipeline end after so many steps.

    Args:
        steps: Steps of the schedule as a whole; of a schedule that `strength` shortens, the same share.
        pipeline: A pipeline with a scheduler of its own, whose `step` is listened to meanwhile.
        strength: The strength of img2img and inpainting.

    Raises:
        ValueError: The pipeline cannot be left before its end.
    """
    if not isinstance(getattr(type(pipeline), "interrupt", None), property):
        raise ValueError(f"{type(pipeline).__name__} cannot be left before its end, so there are no previews of it")
    scheduler, seen = pipeline.scheduler, dict[str, torch.Tensor]()
    original = scheduler.step
    # Samplers of second order run the loop twice for a step.
    turns = max(1, int(steps * (strength or 1.0))) * getattr(scheduler, "order", 1)

    @wraps(original)  # diffusers looks at its arguments for a generator
    def listening(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        made = original(model_output, timestep, sample, *args, **kwargs)
        seen["x0"] = predicted(scheduler, model_output, timestep, sample, made)
        return made

    def after_step(running: Any, turn: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if turn + 1 < turns:
            return tensors
        running._interrupt = True
        return {**tensors, "latents": seen["x0"].to(tensors["latents"].dtype)}

    scheduler.step = listening
    try:
        yield after_step
    finally:
        del scheduler.step  # uncovers the class's own


def predicted(scheduler: Any, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, made: Any) -> torch.Tensor:
    """Return the image that a step expects in the end (x0), in latents.

    The model's output is noise (arXiv:2006.11239, equation 15), velocity (arXiv:2202.00512, section 4) or a flow (arXiv:2403.03206,
    equation 13), or, with the noise of EDM, what its own formula makes an image of (arXiv:2206.00364, equation 7).

    Args:
        scheduler: The scheduler that took the step.
        model_output: The model's output, guidance included.
        timestep: The step's timestep.
        sample: The latents that the model was given.
        made: The scheduler's output as a tuple; its second entry, where there is one, is the prediction, but for TCD.
    """
    # The second entry of TCD (arXiv:2402.19159) is a noisy sample.
    if len(made) > 1 and not type(scheduler).__name__.startswith("TCD"):
        return made[1]
    sample, said = sample.float(), model_output.float()
    if hasattr(scheduler, "precondition_outputs"):
        return scheduler.precondition_outputs(sample, said, scheduler.sigmas[scheduler.step_index - 1])
    # A flow-matching scheduler says so by its name alone.
    flow = type(scheduler).__name__.startswith("FlowMatch")
    kind = "flow_prediction" if flow else scheduler.config.prediction_type
    if hasattr(scheduler, "sigmas"):
        ratio = float(scheduler.sigmas[scheduler.step_index - 1])  # of noise to image; the step has advanced the index
        if kind == "flow_prediction":
            return sample - ratio * said
        alpha = (1 + ratio**2) ** -0.5
        sigma = ratio * alpha
    else:
        alpha = float(scheduler.alphas_cumprod[int(timestep)]) ** 0.5
        sigma = (1 - alpha**2) ** 0.5
    if kind == "epsilon":
        return (sample - sigma * said) / alpha
    if kind == "v_prediction":
        return alpha * sample - sigma * said
    if kind == "sample":
        return said
    raise ValueError(f"previews of a model that predicts {kind} are not known")
