"""Lists the schedulers that a request may name: an allow-list, by short names, with the diffusers class behind each.

A scheduler whose noise does not come from a generator of its own for each candidate is refused, since no image could be made again
alone.
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
        edm: The class for models with the noise of EDM (arXiv:2206.00364), where there is one.
        takes_eta: Whether the scheduler adds noise of its own where the config sets an eta above 0.
        order: Evaluations of the model a step: 2 for those of second order, whose last step takes one.
        extra: Evaluations beyond these, in a schedule as a whole.
    """

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    stochastic: bool = False
    flow: str | None = None
    edm: str | None = None
    takes_eta: bool = False
    order: int = 1
    extra: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the classes for models of noise, of flows and of EDM, as far as there are some."""
        return tuple(name for name in (self.class_name, self.flow, self.edm) if name)

    def evaluations(self, steps: int) -> int:
        """Return how often a schedule of so many steps evaluates the model, each time with guidance counted once."""
        return self.order * steps - (self.order - 1) + self.extra

    def adds_noise(self, eta: float) -> bool:
        """Return whether the scheduler adds, or may add, noise of its own, given the config's eta."""
        return self.stochastic or (self.takes_eta and eta > 0)


_KARRAS = {"use_karras_sigmas": True}
_TO_ZERO = {"lower_order_final": True}  # what diffusers makes of a schedule that ends at zero, with a warning for each
_ODE, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
_MULTISTEP, _SINGLESTEP, _EDM_MULTISTEP = (
    f"{name}Scheduler" for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "EDMDPMSolverMultistep")
)

SCHEDULERS: dict[str, SchedulerKind] = {
    "ddim": SchedulerKind("DDIMScheduler", takes_eta=True),
    "ddpm": SchedulerKind("DDPMScheduler", stochastic=True),
    "pndm": SchedulerKind("PNDMScheduler", {"skip_prk_steps": True}, extra=1),
    "euler": SchedulerKind("EulerDiscreteScheduler", flow="FlowMatchEulerDiscreteScheduler", edm="EDMEulerScheduler"),
    "euler_karras": SchedulerKind("EulerDiscreteScheduler", _KARRAS),
    "euler_a": SchedulerKind("EulerAncestralDiscreteScheduler", stochastic=True),
    "heun": SchedulerKind("HeunDiscreteScheduler", flow="FlowMatchHeunDiscreteScheduler", order=2),
    "lms": SchedulerKind("LMSDiscreteScheduler"),
    "lms_karras": SchedulerKind("LMSDiscreteScheduler", _KARRAS),
    "kdpm2": SchedulerKind("KDPM2DiscreteScheduler", order=2),
    "kdpm2_a": SchedulerKind("KDPM2AncestralDiscreteScheduler", stochastic=True, order=2),
    "dpmpp_2m": SchedulerKind(_MULTISTEP, _ODE, flow=_MULTISTEP, edm=_EDM_MULTISTEP),
    "dpmpp_2m_karras": SchedulerKind(_MULTISTEP, _ODE | _KARRAS),
    "dpmpp_2m_sde": SchedulerKind(_MULTISTEP, _SDE, stochastic=True, edm=_EDM_MULTISTEP),
    "dpmpp_2m_sde_karras": SchedulerKind(_MULTISTEP, _SDE | _KARRAS, stochastic=True),
    # Singlestep solvers of diffusers spread the stages of a step of second order over two steps, and so evaluate once a step.
    "dpmpp_2s": SchedulerKind(_SINGLESTEP, _TO_ZERO | _ODE),
    "dpmpp_2s_karras": SchedulerKind(_SINGLESTEP, _TO_ZERO | _ODE | _KARRAS),
    "dpmpp_sde": SchedulerKind(_SINGLESTEP, _TO_ZERO | _SDE, stochastic=True),
    "dpmpp_sde_karras": SchedulerKind(_SINGLESTEP, _TO_ZERO | _SDE | _KARRAS, stochastic=True),
    "unipc": SchedulerKind("UniPCMultistepScheduler", flow="UniPCMultistepScheduler"),
    "unipc_karras": SchedulerKind("UniPCMultistepScheduler", _KARRAS),
    "deis": SchedulerKind("DEISMultistepScheduler"),
    "sa_solver": SchedulerKind("SASolverScheduler", {"algorithm_type": "data_prediction"}, stochastic=True),
    "lcm": SchedulerKind("LCMScheduler", stochastic=True),
    "tcd": SchedulerKind("TCDScheduler", takes_eta=True),
}

_OWN_TREE = "draws its noise from a Brownian tree of torchsde with a seed of its own, not from the candidates' generators"
_OWN_NOISE = "has a noise schedule of its own, whatever that of the model is"
_ONE_KIND = "is made for one kind of model; a model that was saved with it and can be served renders by scheduler: model"

# By class, why it is no scheduler that a request may name, after "CLASS …".
REFUSED: dict[str, str] = {
    "DPMSolverSDEScheduler": f"{_OWN_TREE}; the nearest is dpmpp_sde",
    "CosineDPMSolverMultistepScheduler": f"{_OWN_TREE}, and is made for sound",
    "FlowMatchLCMScheduler": "adds noise at every step, and pipelines of flows hand it no generator of the candidates",
    "IPNDMScheduler": f"{_OWN_NOISE}; the nearest is deis",
    **dict.fromkeys(("KarrasVeScheduler", "ScoreSdeVeScheduler"), f"{_OWN_NOISE}, and steps otherwise than pipelines do"),
    "DDIMParallelScheduler": "takes the steps of ddim; name that",
    "DDPMParallelScheduler": "takes the steps of ddpm; name that",
    "DDIMInverseScheduler": "leads from an image to its noise",
    "DPMSolverMultistepInverseScheduler": "leads from an image to its noise",
    "RePaintScheduler": "takes an image and a mask at every step, which no pipeline of a supported family hands it",
    **dict.fromkeys(
        (
            "AmusedScheduler",
            "BlockRefinementScheduler",
            "CMStochasticIterativeScheduler",
            "CogVideoXDDIMScheduler",
            "CogVideoXDPMScheduler",
            "ConsistencyDecoderScheduler",
            "DDPMWuerstchenScheduler",
            "DiscreteDDIMScheduler",
            "EntropyBoundScheduler",
            "FlowMapEulerDiscreteScheduler",
            "HeliosDMDScheduler",
            "HeliosScheduler",
            "LTXEulerAncestralRFScheduler",
            "MiniMaxH3Scheduler",
            "PiflowScheduler",
            "RFD4ProteinaScheduler",
            "SCMScheduler",
            "UnCLIPScheduler",
            "VQDiffusionScheduler",
        ),
        _ONE_KIND,
    ),
}

OWN = "model"  # the scheduler that the model was saved with, class and config


def scheduler_kind(name: str) -> SchedulerKind:
    """Return the kind of a scheduler by its short name, as `scheduler_name` returns it."""
    return SchedulerKind("", stochastic=True) if name == OWN else SCHEDULERS[name]


def scheduler_name(given: str) -> str:
    """Return the short name of a scheduler that is given by its short name, in any case, or by its diffusers class.

    A class that several names share (with different options) means the first of them.

    Raises:
        ValueError: The scheduler is not on the allow-list; the message says why not, or names the nearest one.
    """
    name = given.strip()
    if name.lower() in (OWN, *SCHEDULERS):
        return name.lower()
    for short, kind in SCHEDULERS.items():
        if name in kind.classes:
            return short
    if name in REFUSED:
        raise ValueError(f"{quoted(name)} {REFUSED[name]}")
    known = [*SCHEDULERS, OWN, *dict.fromkeys(name for kind in SCHEDULERS.values() for name in kind.classes)]
    plain = ", ".join([*(short for short in SCHEDULERS if not short.endswith("_karras")), OWN])
    raise ValueError(f"{quoted(given)} is not an allowed scheduler{nearest(name, known)}; allowed: {plain}; some with _karras, too")
