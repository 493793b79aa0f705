"""Makes the noise of variations: between the noise of a seed and that of another seed, on the sphere."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

NOISE = "randn_tensor"  # the function by which the modules of diffusers' pipelines draw noise


class VariedGenerator(torch.Generator):
    """Draws random numbers of a seed, and says how the first noise that a pipeline draws by the generator is varied.

    Attributes:
        other: The seed of the other noise.
        strength: The share of the other noise, in 0 … 1.
        varied: Whether the noise has been drawn.
    """

    other: int
    strength: float
    varied: bool


def generator_of(seed: int, variation: tuple[int, float] | None) -> torch.Generator:
    """Return the CPU generator of a candidate's noise.

    Args:
        seed: The candidate's.
        variation: The seed of the other noise and its share; None where the noise is not varied.
    """
    if variation is None:
        return torch.Generator("cpu").manual_seed(seed)
    made = VariedGenerator("cpu")
    made.manual_seed(seed)
    made.other, made.strength = variation
    made.varied = False
    return made


def vary_noise_of(pipeline: Any) -> None:
    """Let the modules of a pipeline's class draw varied noise; other noise stays as it is, to the bit."""
    for kind in type(pipeline).__mro__:
        module = sys.modules.get(kind.__module__)
        draw = getattr(module, NOISE, None)
        if draw is not None and not hasattr(draw, "varies"):
            setattr(module, NOISE, _varying(draw))


def check_varied(generators: Sequence[torch.Generator]) -> None:
    """Raise ValueError where a pipeline has drawn no noise that could be varied."""
    if any(isinstance(one, VariedGenerator) and not one.varied for one in generators):
        raise ValueError("the model's pipeline draws its noise in a way of its own, so that there are no variations of it")


def _varying(draw: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @wraps(draw)
    def varied(shape: Any, generator: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        noise = draw(shape, generator, *args, **kwargs)
        listed = generator if isinstance(generator, list | tuple) else [generator]
        for place, one in enumerate(listed):
            if isinstance(one, VariedGenerator) and not one.varied:
                one.varied = True
                alone = (1, *shape[1:])
                other = draw(alone, torch.Generator("cpu").manual_seed(one.other), *args, **kwargs)
                noise[place : place + 1] = between(noise[place : place + 1], other, one.strength)
        return noise

    varied.varies = True  # type: ignore[attr-defined]
    return varied


def between(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """Return the noise on the way from one to another, along the great circle (slerp; Shoemake, 1985).

    Args:
        one, other: Of one shape, normally distributed.
        share: 0 is the one, 1 the other.

    Returns:
        As long as the two are, in their dtype.
    """
    a, b = one.double().flatten(), other.double().flatten()
    cosine = torch.dot(a, b) / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if torch.sin(angle) < 1e-6:  # the same noise, between which there is no way
        return one
    mixed = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
    return mixed.reshape(one.shape).to(one.dtype)
