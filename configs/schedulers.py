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
    """Names a diffusers scheduler class, with the options of its config beyond the model's own."""

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False


SCHEDULERS: dict[str, SchedulerKind] = {
    "ddim": SchedulerKind("DDIMScheduler"),
    "ddpm": SchedulerKind("DDPMScheduler", stochastic=True),
    "pndm": SchedulerKind("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": SchedulerKind("EulerDiscreteScheduler"),
    "euler_karras": SchedulerKind("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": SchedulerKind("EulerAncestralDiscreteScheduler", stochastic=True),
    "heun": SchedulerKind("HeunDiscreteScheduler"),
    "lms": SchedulerKind("LMSDiscreteScheduler"),
    "kdpm2": SchedulerKind("KDPM2DiscreteScheduler"),
    "dpmpp_2m": SchedulerKind("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_karras": SchedulerKind("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpmpp_2m_sde": SchedulerKind("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, stochastic=True),
    "unipc": SchedulerKind("UniPCMultistepScheduler"),
    "deis": SchedulerKind("DEISMultistepScheduler"),
    "lcm": SchedulerKind("LCMScheduler", stochastic=True),
}


def scheduler_name(given: str) -> str:
    """Return the short name of a scheduler that is given by its short name, in any case, or by its diffusers class.

    A class that several names share (with different options) means the first of them.

    Raises:
        ValueError: The scheduler is not on the allow-list; the message names the nearest one.
    """
    name = given.strip()
    if name.lower() in SCHEDULERS:
        return name.lower()
    for short, kind in SCHEDULERS.items():
        if kind.class_name == name:
            return short
    known = [*SCHEDULERS, *dict.fromkeys(kind.class_name for kind in SCHEDULERS.values())]
    raise ValueError(f"{quoted(given)} is not an allowed scheduler{nearest(name, known)}; allowed: {', '.join(SCHEDULERS)}")
