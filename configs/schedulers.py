"""Lists the schedulers that a request may name: an allow-list, by short names, with the diffusers class behind each.

Schedulers that ignore a generator of their own for each candidate (DPMSolverSDE) are left out on purpose, since no image could be
made again alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from promptmill.configs.errors import nearest, quoted


@dataclass(frozen=True)
class SchedulerKind:
    """Names a diffusers scheduler class, with the options of its config beyond the model's own.

    Attributes:
        class_name: The class for models that predict noise or velocity; empty for the model's own.
        options: Options of its config.
        stochastic: Whether the scheduler adds noise of its own, or, as the model's own, may.
        flow: The class for flow-matching models (arXiv:2210.02747), where there is one.
    """

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False
    flow: str | None = None


SCHEDULERS: dict[str, SchedulerKind] = {
    "ddim": SchedulerKind("DDIMScheduler"),
    "ddpm": SchedulerKind("DDPMScheduler", stochastic=True),
    "pndm": SchedulerKind("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": SchedulerKind("EulerDiscreteScheduler", flow="FlowMatchEulerDiscreteScheduler"),
    "euler_karras": SchedulerKind("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": SchedulerKind("EulerAncestralDiscreteScheduler", stochastic=True),
    "heun": SchedulerKind("HeunDiscreteScheduler", flow="FlowMatchHeunDiscreteScheduler"),
    "lms": SchedulerKind("LMSDiscreteScheduler"),
    "kdpm2": SchedulerKind("KDPM2DiscreteScheduler"),
    "dpmpp_2m": SchedulerKind("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, flow="DPMSolverMultistepScheduler"),
    "dpmpp_2m_karras": SchedulerKind("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpmpp_2m_sde": SchedulerKind("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, stochastic=True),
    "unipc": SchedulerKind("UniPCMultistepScheduler", flow="UniPCMultistepScheduler"),
    "deis": SchedulerKind("DEISMultistepScheduler"),
    "lcm": SchedulerKind("LCMScheduler", stochastic=True),
}

OWN = "model"  # the scheduler that the model was saved with, class and config


def scheduler_kind(name: str) -> SchedulerKind:
    """Return the kind of a scheduler by its short name, as `scheduler_name` returns it."""
    return SchedulerKind("", stochastic=True) if name == OWN else SCHEDULERS[name]


def scheduler_name(given: str) -> str:
    """Return the short name of a scheduler that is given by its short name, in any case, or by its diffusers class.

    A class that several names share (with different options) means the first of them.

    Raises:
        ValueError: The scheduler is not on the allow-list; the message names the nearest one.
    """
    name = given.strip()
    if name.lower() in (OWN, *SCHEDULERS):
        return name.lower()
    for short, kind in SCHEDULERS.items():
        if kind.class_name == name:
            return short
    known = [*SCHEDULERS, OWN, *dict.fromkeys(kind.class_name for kind in SCHEDULERS.values())]
    raise ValueError(f"{quoted(given)} is not an allowed scheduler{nearest(name, known)}; allowed: {', '.join([*SCHEDULERS, OWN])}")
