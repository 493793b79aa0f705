"""Makes one model call of many: calls of a module that pipelines make one by one are held back, joined row by row, and answered.

A pipeline runs in a greenlet. Where it calls a joined module, it stops there; once all that run have stopped, the rows of
their calls go through the real module together, in batches of one fixed shape, and each goes on with its own rows of the result.
So diffusers' own code does everything that is of one request (latents, masks, schedulers, guidance, windows), unchanged, and
requests that differ in all of it share the batch. At a fixed shape a row's bits depend neither on its place nor on its companions.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import getcurrent, greenlet


@dataclass
class Call:
    """Holds a call of a module until its rows are answered.

    Attributes:
        caller: The greenlet that goes on once the call is answered.
        arguments: By name; tensors with `rows` rows, or what all rows share.
        rows: How many rows the call has.
        taken: How many of the rows have been through the module.
        parts: What came out, in the order of the rows.
    """

    caller: greenlet
    arguments: dict[str, Any]
    rows: int
    taken: int = 0
    parts: list[Any] = field(default_factory=list)


@dataclass
class Joined:
    """Joins the calls of a module.

    Attributes:
        run: The real call, by keyword, on a full batch; returns a tensor, or a tuple or list of tensors or of lists of them.
        names: Of its positional arguments.
        shape: Rows a batch, always.
        called: Told of each caller as it calls.
        calls, rows, seconds: What has been run: batches, the rows in them, and the time it took.
    """

    run: Callable[..., Any]
    names: tuple[str, ...]
    shape: int
    called: Callable[[greenlet], object] = lambda caller: None
    seconds: float = 0.0
    waiting: deque[Call] = field(default_factory=deque)
    calls: int = 0
    rows: int = 0

    @property
    def waiting_rows(self) -> int:
        return sum(call.rows - call.taken for call in self.waiting)

    def hold(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the module: stop the calling greenlet until its rows are answered."""
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        sample = next(value for value in arguments.values() if isinstance(value, torch.Tensor) and value.ndim)
        caller = getcurrent()
        self.called(caller)
        self.waiting.append(Call(caller, arguments, len(sample)))
        assert caller.parent is not None, "a joined module is called outside of a greenlet"
        return caller.parent.switch()  # what the caller is gone on with

    def run_batch(self) -> list[tuple[greenlet, Any]]:
        """Run one batch of the waiting rows, oldest first, padded to the shape.

        Returns:
            The callers that are answered with it, and what they get.
        """
        pieces: list[tuple[Call, slice]] = []
        filled = 0
        for call in self.waiting:
            rows = slice(call.taken, min(call.rows, call.taken + self.shape - filled))
            pieces.append((call, rows))
            filled += rows.stop - rows.start
            if filled == self.shape:
                break
        started = time.monotonic()
        result = self.run(**_joined([(call.arguments, call.rows, rows) for call, rows in pieces], self.shape))
        self.calls, self.rows, self.seconds = self.calls + 1, self.rows + filled, self.seconds + time.monotonic() - started
        answered, start = [], 0
        for call, rows in pieces:
            number = rows.stop - rows.start
            call.parts.append(_rows(result, slice(start, start + number), self.shape))
            start += number
            call.taken += number
            if call.taken == call.rows:
                answered.append((call.caller, _together(call.parts)))
        for _ in answered:
            self.waiting.popleft()
        return answered


def _joined(pieces: list[tuple[Mapping[str, Any], int, slice]], shape: int) -> dict[str, Any]:
    names = pieces[0][0].keys()
    return {name: _cat([(arguments.get(name), count, rows) for arguments, count, rows in pieces], shape, name) for name in names}


def _cat(values: list[tuple[Any, int, slice]], shape: int, name: str) -> Any:
    """One argument of all pieces as one: tensors row by row, what is one value a call (a timestep) spread over its rows."""
    first, count, _ = values[0]
    if isinstance(first, dict):
        return {key: _cat([(value[key], n, rows) for value, n, rows in values], shape, name) for key in first}
    if isinstance(first, list | tuple):
        return [_cat([(value[i], n, rows) for value, n, rows in values], shape, name) for i in range(len(first))]
    if isinstance(first, torch.Tensor) and first.ndim and len(first) == count:
        pieces = [value[rows] for value, _, rows in values]
        missing = shape - sum(len(piece) for piece in pieces)
        pieces += [pieces[-1][-1:].expand(missing, *pieces[-1].shape[1:])] if missing else []
        # One memory format for all: kernels, and with them bits, differ between formats.
        return torch.cat([piece.contiguous() for piece in pieces])
    if name == "timestep":
        # Schedulers differ in the type of their timesteps; the model makes floats of them anyway.
        spread = torch.cat([torch.as_tensor(value).reshape(1).float().expand(rows.stop - rows.start) for value, _, rows in values])
        return torch.cat([spread, spread[-1:].expand(shape - len(spread))])
    return first


def _rows(result: Any, some: slice, shape: int) -> Any:
    if isinstance(result, torch.Tensor):
        # Contiguous, whatever format the module computes in: what callers reduce over has one order.
        return result[some].contiguous() if result.ndim and len(result) == shape else result
    return type(result)(_rows(item, some, shape) for item in result)


def _together(parts: list[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    return type(parts[0])(_together([part[i] for part in parts]) for i in range(len(parts[0])))
