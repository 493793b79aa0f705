"""Makes previews: ends a trajectory early, and decodes the image that it predicted at that step (its x0).

Published pruning ranks candidates by previews. Calibration makes previews to compare drafts with; a run never does.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from typing import Any

import torch

from promptmill.pipelines.work.evaluations import StepsLeft, steps_of

WUERSTCHEN = "DDPMWuerstchen"


@contextmanager
def ending_after(steps: int, pipeline: Any, strength: float | None = None, left: StepsLeft = "down") -> Iterator[dict[str, Any]]:
    """Yield further arguments of one call of a diffusers pipeline that make the call end after so many steps.

    Most pipelines are interrupted by a callback. Of the others the loop is given the first timesteps alone; their scheduler has the
    whole schedule, since solvers look ahead.

    Args:
        steps: Steps of the schedule as a whole; of a schedule that `strength` shortens, the same share.
        pipeline: A pipeline with a scheduler of its own, whose `step` is listened to meanwhile.
        strength: The strength of img2img and inpainting.
        left: How many steps a strength leaves.

    Raises:
        ValueError: The pipeline has taken other steps than its scheduler's.
    """
    interrupted = isinstance(getattr(type(pipeline), "interrupt", None), property)
    interrupted &= "callback_on_step_end" in inspect.signature(pipeline.__call__).parameters
    scheduler, seen, taken = pipeline.scheduler, dict[str, Any](), count(1)
    step, set_timesteps = scheduler.step, scheduler.set_timesteps
    order = getattr(scheduler, "order", 1)  # samplers of second order run the loop twice for a step
    turns = steps_of(steps, strength, left) * order

    @wraps(step)  # diffusers looks at its arguments for a generator
    def listening(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not interrupted and (whole := seen.pop("timesteps", None)) is not None:
            scheduler.timesteps = whole
        made = step(model_output, timestep, sample, *args, **kwargs)
        parts = made if isinstance(made, tuple) else made.to_tuple()
        seen["x0"] = predicted(scheduler, model_output, timestep, sample, parts)
        if interrupted or next(taken) < seen["turns"]:
            return made
        seen["end"] = seen["x0"].to(parts[0].dtype)
        return (seen["end"], *parts[1:]) if isinstance(made, tuple) else type(made)(**{**made, "prev_sample": seen["end"]})

    @wraps(set_timesteps)
    def shortened(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        seen["timesteps"] = whole = scheduler.timesteps
        # The pipelines of Würstchen's schedule leave out its last timestep, at which there is no noise.
        rest = 1 if type(scheduler).__name__.startswith(WUERSTCHEN) else 0
        # Of a schedule that begins late, pipelines pass over the first timesteps themselves.
        whole_steps = len(whole) // order + len(whole) % order - rest
        begin = (whole_steps - steps_of(whole_steps, strength, left)) * order
        scheduler.timesteps = whole[: begin + turns + rest]
        seen["turns"] = len(scheduler.timesteps) - begin - rest  # the last step of second order takes one turn

    def after_step(running: Any, turn: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if turn + 1 < turns:
            return tensors
        running._interrupt = True
        return {**tensors, "latents": seen["x0"].to(tensors["latents"].dtype)}

    scheduler.step = listening
    if not interrupted:
        scheduler.set_timesteps = shortened
    try:
        yield {"callback_on_step_end": after_step} if interrupted else {}
        if not interrupted and "end" not in seen:
            raise ValueError(f"{type(pipeline).__name__} cannot be left before its end, so there are no previews of it")
    finally:
        for name in ("step", "set_timesteps"):
            scheduler.__dict__.pop(name, None)  # uncovers the class's own


def predicted(scheduler: Any, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, made: Any) -> torch.Tensor:
    """Return the image that a step expects in the end (x0), in latents.

    The model's output is noise (arXiv:2006.11239, equation 15), velocity (arXiv:2202.00512, section 4) or a flow (arXiv:2403.03206,
    equation 13), or, with the noise of EDM, what its own formula makes an image of (arXiv:2206.00364, equation 7), as consistency
    models have one (arXiv:2303.01469, equation 5). Würstchen's schedule counts from 1 to 0 (arXiv:2306.00637).

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
    if hasattr(scheduler, "get_scalings_for_boundary_condition"):
        kept, made_anew = scheduler.get_scalings_for_boundary_condition(scheduler.sigmas[scheduler.step_index - 1])
        expected = made_anew * said + kept * sample
        return expected.clamp(-1, 1) if scheduler.config.clip_denoised else expected
    if type(scheduler).__name__.startswith(WUERSTCHEN):
        share = scheduler._alpha_cumprod(timestep, sample.device).view(-1, *[1] * (sample.ndim - 1))
        return (sample - (1 - share).sqrt() * said) / share.sqrt()
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
