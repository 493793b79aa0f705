"""Calls of plain modules at the engine's batch shape: a call of any number of rows as several of one shape."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution


def _by_rows(given: dict[str, Any]) -> dict[str, Any]:
    """A language model's arguments with the patches of each row's pictures, all of one size, in a row of their own."""
    if "image_grid_thw" not in given:
        return given
    rows = len(given["input_ids"])
    return given | {name: given[name].unflatten(0, (rows, -1)) for name in ("pixel_values", "image_grid_thw")}


def _one_after_the_other(given: dict[str, Any]) -> dict[str, Any]:
    if "image_grid_thw" not in given:
        return given
    return given | {name: given[name].flatten(0, 1) for name in ("pixel_values", "image_grid_thw")}


def in_pieces(call: Callable[..., Any], size: int, side: int = 0) -> Callable[..., Any]:
    """A module's call as several, of `size` rows each; the last row is repeated where some are missing.

    Args:
        call: The call.
        size: Rows of each of the several.
        side: The side of tensors in the answer that has the rows.
    """

    def cut(value: Any, some: slice, rows: int) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim == 3 and value.dtype == torch.long and value.shape[:2] == (3, rows):
            return filled(value.transpose(0, 1), some, rows).transpose(0, 1)  # positions in three dimensions
        if isinstance(value, list) and value and all(isinstance(one, torch.Tensor) and one.ndim > 2 for one in value):
            return [cut(one, some, rows) for one in value]  # of several pictures
        if isinstance(value, dict):
            return {name: cut(one, some, rows) for name, one in value.items()}
        return filled(value, some, rows) if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows else value

    def filled(value: torch.Tensor, some: slice, rows: int) -> torch.Tensor:
        return torch.cat([value[some], *[value[-1:]] * max(0, some.stop - rows)])

    def together(parts: list[Any]) -> Any:
        if isinstance(parts[0], torch.Tensor):
            return torch.cat(parts, side) if parts[0].ndim else parts[0]
        if isinstance(parts[0], DiagonalGaussianDistribution):
            return DiagonalGaussianDistribution(torch.cat([part.parameters for part in parts]))
        if isinstance(parts[0], dict):
            return type(parts[0])(**{name: together([part[name] for part in parts]) for name in parts[0]})
        return tuple(map(together, zip(*parts, strict=True))) if isinstance(parts[0], tuple) else None

    def only(value: Any, rows: int) -> Any:
        if isinstance(value, torch.Tensor):
            return value if not value.ndim else value[:, :rows] if side else value[:rows]
        if isinstance(value, DiagonalGaussianDistribution):
            return DiagonalGaussianDistribution(value.parameters[:rows])
        if isinstance(value, dict):
            return type(value)(**{name: only(part, rows) for name, part in value.items()})
        return tuple(only(part, rows) for part in value) if isinstance(value, tuple) else None

    def run(*args: Any, **kwargs: Any) -> Any:
        kwargs = _by_rows(kwargs)
        rows = len(next(value for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)))
        pieces = [slice(start, start + size) for start in range(0, rows, size)]
        parts = [({n: cut(v, some, rows) for n, v in kwargs.items()}, [cut(v, some, rows) for v in args]) for some in pieces]
        return only(together([call(*listed, **_one_after_the_other(named)) for named, listed in parts]), rows)

    # Pipelines look at what a part can be told.
    return wraps(call)(run)


def with_a_timestep_each(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A transformer's call with as many timesteps as rows: PRX's pipeline gives two with guidance, and one without."""

    def run(hidden_states: torch.Tensor, timestep: torch.Tensor, **given: Any) -> Any:
        return forward(hidden_states=hidden_states, timestep=timestep[:1].expand(len(hidden_states)), **given)

    return run
