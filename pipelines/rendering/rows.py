"""Cuts and joins what modules take and return, row by row, whatever is nested around the tensors.

A value is a tensor whose first dimension is the rows, a list with a tensor for each row, or tuples, lists, dicts and outputs of
diffusers and transformers that hold such values. What is none of these belongs to the call as a whole.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch


def count_of(values: Iterable[Any]) -> int:
    """Return the rows of a call: the length of its sample."""
    return len(_sample(values))


def is_listed(values: Iterable[Any]) -> bool:
    """Return whether the sample of a call is a list with a tensor for each row, as Z-Image's transformer takes it."""
    return isinstance(_sample(values), list)


def _sample(values: Iterable[Any]) -> Any:
    """Return the first argument of a call that is a tensor with rows or a list of tensors."""
    for value in values:
        listed = isinstance(value, list) and value and is_of_rows(value, len(value))
        if listed or (isinstance(value, torch.Tensor) and value.ndim):
            return value
    raise TypeError("a joined module is called without a tensor")


def spread(pieces: Sequence[torch.Tensor], shape: int) -> torch.Tensor:
    """Return tensors one after the other, (shape, …); the last row is repeated where rows are missing."""
    missing = shape - sum(len(piece) for piece in pieces)
    padding = [pieces[-1][-1:].expand(missing, *pieces[-1].shape[1:])] if missing else []
    return torch.cat([_contiguous(piece) for piece in [*pieces, *padding]])


def _contiguous(value: torch.Tensor) -> torch.Tensor:
    """Return a tensor in one memory format, whatever its own: kernels, and with them bits, differ between formats.

    Torch takes the strides of sides of 1 for those of either format, and asks them what format to go on in.
    """
    whole = value.contiguous()
    strides = [math.prod(whole.shape[side + 1 :]) for side in range(whole.ndim)]
    return whole.as_strided(whole.shape, strides)


def repeated(items: list[Any], shape: int) -> list[Any]:
    """Return a list of `shape` entries: the items, and the last of them again where some are missing."""
    return [*items, *[items[-1]] * (shape - len(items))]


def is_of_rows(value: Any, rows: int) -> bool:
    """Return whether a value is a list of so many tensors."""
    return isinstance(value, list) and len(value) == rows and all(isinstance(one, torch.Tensor) for one in value)


def taken(value: Any, some: slice, rows: int, listed: bool = False) -> Any:
    """Return some rows of a value; what belongs to the call as a whole stays as it is, but for an object, which becomes None.

    Such an object is the cache of a language model, which is of no use to one who asks for embeddings.

    Args:
        value: What a module returned.
        some: The rows wanted.
        rows: The rows that the value has.
        listed: Whether lists hold a tensor for each row; ControlNets return lists with a tensor for each of their levels instead.
    """
    if isinstance(value, torch.Tensor):
        # Contiguous, whatever format the module computes in, so that callers reduce in one order.
        return value[some].contiguous() if value.ndim and len(value) == rows else value
    if _is_output(value):
        return type(value)(**{name: taken(one, some, rows, listed) for name, one in value.items()})
    if listed and is_of_rows(value, rows):
        return value[some]
    if type(value) is dict:
        return {name: taken(one, some, rows, listed) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(taken(one, some, rows, listed) for one in value)
    return value if isinstance(value, str | int | float | bool) else None


def together(parts: Sequence[Any], listed: bool = False) -> Any:
    """Return the value whose rows are those of the parts, one after the other; `listed` as for `taken`."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts)) if first.ndim else first
    if _is_output(first):
        return type(first)(**{name: together([part[name] for part in parts], listed) for name in first})
    if type(first) is dict:
        return {name: together([part[name] for part in parts], listed) for name in first}
    if listed and isinstance(first, list):
        return [one for part in parts for one in part]
    if isinstance(first, list | tuple):
        return type(first)(together([part[i] for part in parts], listed) for i in range(len(first)))
    return first


def _is_output(value: Any) -> bool:
    """Return whether a value is an output of diffusers or of transformers, by what both have, so that neither is imported."""
    return isinstance(value, dict) and hasattr(value, "to_tuple")
