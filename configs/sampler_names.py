"""Lists the names of other tools' samplers, and the scheduler that each name means: one table for A1111, ComfyUI and others.

Names differ in case, in `_` for spaces, in `k_` before and `_gpu` behind, and in how they spell `++` and `ancestral`; such names
are one here. A name may say how sigmas are spaced, as `DPM++ 2M Karras` and InvokeAI's `dpmpp_2m_k` do.
"""

import re
from dataclasses import dataclass

from promptmill.configs.schedulers import OWN, SCHEDULERS

# By the plain name; None: diffusers has no such sampler, or none that gives each candidate noise of its own.
SAMPLERS: dict[str, str | None] = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "pndm": "pndm",
    "plms": "pndm",
    "euler": "euler",
    "euler a": "euler_a",
    "heun": "heun",
    "lms": "lms",
    "dpm2": "kdpm2",
    "dpm2 a": "kdpm2_a",
    "dpm++ 2m": "dpmpp_2m",
    "dpm++ 2m sde": "dpmpp_2m_sde",
    "dpm++ 2s": "dpmpp_2s",
    "dpm++ sde": "dpmpp_sde",
    "dpmsolver++": "dpmpp_2m",
    "dpmsingle": "dpmpp_2s",
    "unipc": "unipc",
    "deis": "deis",
    "lcm": "lcm",
    "tcd": "tcd",
    "sa solver": "sa_solver",
    "dpm++ 2s a": None,
    "dpm++ 2m sde heun": None,
    "dpm++ 3m": None,
    "dpm++ 3m sde": None,
    "dpm adaptive": None,
    "dpm fast": None,
    "dpmsolver": None,
    "ddim cfg++": None,
    "euler cfg++": None,
    "euler a cfg++": None,
    "heun++ 2": None,
    "ipndm": None,
    "ipndm v": None,
    "restart": None,
    "res multistep": None,
    "er sde": None,
}
# The spacings that A1111 takes for the schedule type Automatic, where these are others than the sampler's plain one.
AUTOMATIC = {
    **dict.fromkeys(("dpm2", "dpm2 a", "dpm++ 2m", "dpm++ 2s a", "dpm++ sde"), "karras"),
    **dict.fromkeys(("dpm++ 2m sde", "dpm++ 2m sde heun", "dpm++ 3m sde"), "exponential"),
}
PLAIN = ("", "automatic", "normal", "uniform", "discrete", "default", "none")  # spacings of sigmas that are the scheduler's own
KARRAS = "karras"

_ALIKE = (
    (re.compile(r"[\s_]+"), " "),
    (re.compile(r"\A(?:k|sample) (?=\w)"), ""),
    (re.compile(r" gpu\Z"), ""),
    (re.compile(r"\bdpmpp\b"), "dpm++"),
    (re.compile(r"\bcfg pp\b"), "cfg++"),
    (re.compile(r"\bheunpp2\b"), "heun++ 2"),
    (re.compile(r"\bk?dpm ?2\b"), "dpm2"),
    (re.compile(r"\bancestral\b"), "a"),
    (re.compile(r"\Auni ?pc(?: bh[12])?\b"), "unipc"),
)
_SPACED = re.compile(r"(?P<name>.+?) (?P<spacing>k|karras|exponential)")


@dataclass(frozen=True)
class Sampler:
    """Holds the counterpart of another tool's sampler.

    Attributes:
        scheduler: The scheduler's name; None where there is none.
        known: Whether the name stands in the table.
        spaced: Whether sigmas are spaced as that tool spaces them.
    """

    scheduler: str | None
    known: bool = True
    spaced: bool = True


def sampler_of(name: str, spacing: str = "") -> Sampler:
    """Return the scheduler that another tool's names of a sampler, and of how its sigmas are spaced, mean; both in any case.

    promptmill's own names mean themselves.
    """
    plain, spacing = name.strip().lower(), re.sub(r"[\s_]+", " ", spacing.strip().lower())
    own = plain if plain in SCHEDULERS or plain == OWN else None
    for pattern, alike in _ALIKE:
        plain = pattern.sub(alike, plain)
    if (within := _SPACED.fullmatch(plain)) and within["name"] in SAMPLERS:
        plain, spacing = within["name"], KARRAS if within["spacing"] == "k" else within["spacing"]
    if plain not in SAMPLERS:
        return Sampler(own, own is not None, spacing in PLAIN)
    scheduler = SAMPLERS[plain]
    if spacing == "automatic":
        spacing = AUTOMATIC.get(plain, "")
    if scheduler is None or spacing in PLAIN:
        return Sampler(scheduler)
    if spacing == KARRAS and f"{scheduler}_{KARRAS}" in SCHEDULERS:
        return Sampler(f"{scheduler}_{KARRAS}")
    return Sampler(scheduler, spaced=False)
