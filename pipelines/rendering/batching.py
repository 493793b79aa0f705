"""Joins model calls: calls that pipelines make one by one are held back, joined row by row, and answered by one model call.

A pipeline runs in a greenlet. Where the pipeline calls a joined module, its greenlet stops. Once all running greenlets have
stopped, the rows of their calls go through the real module together, in batches of one fixed shape, and each greenlet goes on with
its own rows of the result. So diffusers' own code does everything that is of one request (latents, masks, schedulers, guidance,
windows), unchanged, and requests that differ in all of these share the batch. At a fixed shape a row's bits depend neither on its
place nor on its companions.
"""

import inspect
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from promptmill.pipelines.rendering.rows import count_of, is_listed, is_of_rows, repeated, spread, taken, together
from promptmill.pipelines.rendering.stopwatch import Stopwatch

PATIENCE = 8  # full batches of other kinds that a call lets pass, while its own kind fills none


@dataclass
class Call:
    """Holds a call of a module until its rows are answered.

    Attributes:
        caller: The greenlet that goes on once the call is answered.
        arguments: By name; tensors or lists with `rows` rows, or a value that all rows share.
        rows: How many rows the call has.
        alike: What calls have to have in common to share a batch.
        shape: Rows a batch of calls that are alike.
        listed: Whether the rows are lists of tensors.
        whole: Whether all rows go through the module at once: it pads tensors of several lengths to the longest of a batch.
        taken: How many of the rows have been through the module.
        parts: The outputs so far, in the order of the rows.
        others: Callers of equal calls, which are given the same answer.
    """

    caller: greenlet
    arguments: dict[str, Any]
    rows: int
    alike: Hashable
    shape: int
    listed: bool = False
    whole: bool = False
    taken: int = 0
    parts: list[Any] = field(default_factory=list)
    others: list[greenlet] = field(default_factory=list)

    @property
    def callers(self) -> list[greenlet]:
        return [self.caller, *self.others]


@dataclass
class Joined:
    """Joins the calls of a module.

    Attributes:
        run: The real call, by keyword, on a full batch; returns tensors with the batch's rows, in whatever is nested around them.
        names: Names of the module's positional arguments.
        shape: Rows a batch, always, but for calls that `fitting` gives fewer.
        fitting: Returns the rows of a batch of calls with such arguments, by the sizes of tensors; None where all have `shape`.
        apart: Returns what calls have to share beside their arguments, of a caller.
        called: Called with each caller and its number of rows as it calls the module.
        once: Whether calls that begin with integers, which are tokens, are answered once where all they say is equal.
        multiple: Of lists with a tensor a row: the length to a multiple of which the module pads each of them by itself.
        longest: The argument, a mask (rows, length), by whose longest row the module cuts a batch; none where it cuts none.
        calls, rows, stopwatch: Totals so far: batches, the rows in them, and the time that they took.
    """

    run: Callable[..., Any]
    names: tuple[str, ...]
    shape: int
    fitting: Callable[[Mapping[str, Any]], int] | None = None
    called: Callable[[greenlet, int], object] = lambda caller, rows: None
    apart: Callable[[greenlet], Hashable] = lambda caller: None
    once: bool = False
    multiple: int = 1
    longest: str | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    waiting: deque[Call] = field(default_factory=deque)
    calls: int = 0
    rows: int = 0
    passed_over: int = 0  # full batches since the oldest call was left waiting for others of its kind

    @classmethod
    def of(cls, run: Callable[..., Any], shape: int, **options: Any) -> "Joined":
        """Return a `Joined` for a module's bound method, whose signature names the positional arguments."""
        return cls(run, tuple(inspect.signature(run).parameters), shape, **options)

    @property
    def waiting_rows(self) -> int:
        return sum(call.rows - call.taken for call in self.waiting)

    @property
    def is_full(self) -> bool:
        """Return whether as many rows wait as a batch of the oldest call has."""
        return bool(self.waiting) and self.waiting_rows >= self.waiting[0].shape

    @property
    def most_alike(self) -> int:
        """Return the largest number of waiting rows that may share a batch."""
        return max(self._kinds().values(), default=0)

    def hold(self, *args: Any, **kwargs: Any) -> Any:
        """Take a call in place of the module: stop the calling greenlet until its rows are answered."""
        arguments = dict(zip(self.names, args, strict=False)) | kwargs
        rows = count_of(arguments.values())
        caller = getcurrent()
        self.called(caller, rows)
        equal = self._equal(arguments) if self.once else None
        if equal is None:
            listed = is_listed(arguments.values())
            same = (alike(arguments, rows, self.multiple if listed else 0), self._length(arguments), self.apart(caller))
            whole = listed and any(
                is_of_rows(value, rows) and len(_lengths(value, self.multiple)) > 1 for value in arguments.values()
            )
            shape = self.shape if self.fitting is None else min(self.shape, self.fitting(arguments))
            self.waiting.append(Call(caller, arguments, rows, same, shape, listed, whole))
        else:
            equal.others.append(caller)
        assert caller.parent is not None, "a joined module is called outside of a greenlet"
        return caller.parent.switch()  # returns the answer with which the caller is resumed

    def run_batch(self) -> list[tuple[greenlet, Any]]:
        """Run one batch of waiting rows that are alike, padded to the shape.

        The rows are those of the oldest call, or of another kind of calls that fill a batch where these do not.

        Returns:
            The callers whose calls the batch completes, each with its answer.
        """
        pieces: list[tuple[Call, slice]] = []
        filled = 0
        calls = self._next()
        shape = calls[0].shape
        for call in calls:
            rows = slice(call.taken, min(call.rows, call.taken + shape - filled))
            if call.whole and pieces and rows.stop - rows.start < call.rows:
                break
            pieces.append((call, rows))
            filled += rows.stop - rows.start
            if filled == shape:
                break
        oldest = self.waiting[0].alike
        listed = pieces[0][0].listed
        with self.stopwatch.running():
            result = self.run(**_joined([(call.arguments, call.rows, rows) for call, rows in pieces], shape, listed))
        self.calls, self.rows = self.calls + 1, self.rows + filled
        self.passed_over = 0 if pieces[0][0].alike == oldest else self.passed_over + 1
        answered, start = list[tuple[greenlet, Any]](), 0
        for call, rows in pieces:
            number = rows.stop - rows.start
            call.parts.append(taken(result, slice(start, start + number), shape, listed))
            start += number
            call.taken += number
            if call.taken == call.rows:
                answer = together(call.parts, listed)
                answered += [(caller, answer) for caller in call.callers]
                self.waiting.remove(call)
        return answered

    def give_up_batch(self) -> list[greenlet]:
        """Drop the calls whose rows the next batch would hold, since it raises, and return their callers."""
        calls = self._next()
        callers, room = list[greenlet](), calls[0].shape
        for call in calls:
            callers += call.callers
            self.waiting.remove(call)
            room -= call.rows - call.taken
            if room <= 0:
                break
        return callers

    def _next(self) -> list[Call]:
        kinds, shapes = self._kinds(), {call.alike: call.shape for call in self.waiting}
        chosen = self.waiting[0].alike
        if kinds[chosen] < shapes[chosen] and self.passed_over < PATIENCE:
            chosen = next((kind for kind, rows in kinds.items() if rows >= shapes[kind]), chosen)
        return [call for call in self.waiting if call.alike == chosen]

    def _kinds(self) -> dict[Hashable, int]:
        """Return the number of waiting rows by what calls have to share, the oldest first."""
        kinds: dict[Hashable, int] = {}
        for call in self.waiting:
            kinds[call.alike] = kinds.get(call.alike, 0) + call.rows - call.taken
        return kinds

    def _length(self, arguments: Mapping[str, Any]) -> int | None:
        mask = arguments.get(self.longest) if self.longest else None
        return None if mask is None else int(mask.sum(1).max())

    def _equal(self, arguments: Mapping[str, Any]) -> Call | None:
        """Return a waiting call with the same tokens and no more than these, if there is one."""
        tokens = _tokens(arguments)
        if tokens is None:
            return None
        return next((call for call in self.waiting if not call.taken and _same(tokens, _tokens(call.arguments))), None)


def _tokens(arguments: Mapping[str, Any]) -> list[tuple[str, Any]] | None:
    """Return the arguments of a call on texts, whose first tensor has tokens; None of a call on pictures or on embeddings."""
    first = next((value for value in arguments.values() if isinstance(value, torch.Tensor)), None)
    return None if first is None or first.is_floating_point() else [*arguments.items()]


def _same(one: Sequence[tuple[str, Any]], other: Sequence[tuple[str, Any]] | None) -> bool:
    if other is None or len(one) != len(other):
        return False
    return all(name == its and _is_same(value, given) for (name, value), (its, given) in zip(one, other, strict=True))


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and not isinstance(one, torch.Tensor) and bool(one == other)


# Lists with the sizes of each row's pictures, which are the same in all rows.
REPEATED = frozenset({"img_shapes"})
# Positions, which all samples of a call share, even where there happen to be as many of them as samples.
SHARED = frozenset({"img_ids", "txt_ids", "image_rotary_emb", "rotary_emb", "freqs_cis", "visual_rope_pos", "text_rope_pos"})


def alike(value: Any, rows: int, multiple: int = 0, name: str = "") -> Hashable:
    """Return a key that calls of a module share where their rows may share a batch: all but the values of tensors.

    Args:
        value: An argument, or all of them by name.
        rows: How many rows the call has.
        multiple: The length to a multiple of which each row's tensor is padded, where rows are lists; else 0.
        name: The argument's name.
    """
    if isinstance(value, Mapping):
        return tuple((key, alike(one, rows, multiple, key)) for key, one in value.items())
    if isinstance(value, list | tuple) and multiple and is_of_rows(value, rows):
        return ("rows", _lengths(value, multiple))
    if _is_repeated(value, rows, name):
        return repr(value[0])
    if isinstance(value, list | tuple):
        return tuple(alike(one, rows, multiple, name) for one in value)
    if name == "timestep":
        return None  # one for a call or one for each row, in whatever type the scheduler counts
    if isinstance(value, torch.Tensor):
        if name in SHARED:
            # Some pipelines repeat positions for each row, and transformers take the first.
            return (value.dtype, tuple(value.shape[-2:]))
        return (value.dtype, tuple(value.shape[1:] if value.ndim and len(value) == rows else value.shape))
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _lengths(value: Sequence[torch.Tensor], multiple: int) -> frozenset[Hashable]:
    """Return the kinds and shapes of the rows of a list, as the module pads them."""
    return frozenset((one.dtype, -(-len(one) // multiple), tuple(one.shape[1:])) for one in value)


def _joined(pieces: Sequence[tuple[Mapping[str, Any], int, slice]], shape: int, listed: bool) -> dict[str, Any]:
    names = pieces[0][0].keys()
    return {name: _cat([(given.get(name), count, rows) for given, count, rows in pieces], shape, name, listed) for name in names}


def _cat(values: Sequence[tuple[Any, int, slice]], shape: int, name: str, listed: bool) -> Any:
    """Join one argument of all pieces: row by row what has rows; a single value a call (a timestep) is repeated for its rows."""
    first, count, _ = values[0]
    if isinstance(first, Mapping):
        return {key: _cat([(value[key], n, rows) for value, n, rows in values], shape, key, listed) for key in first}
    if listed and is_of_rows(first, count):
        return repeated([one for value, _, rows in values for one in value[rows]], shape)
    if _is_repeated(first, count, name):
        return first[:1] * shape
    if isinstance(first, list | tuple):
        return type(first)(_cat([(value[i], n, rows) for value, n, rows in values], shape, name, listed) for i in range(len(first)))
    if name == "timestep" and not all(_has_rows(value, n) for value, n, _ in values):
        # Schedulers differ in the type of their timesteps; the model makes floats of them anyway.
        return spread([_timesteps(value, n)[rows] for value, n, rows in values], shape)
    if _has_rows(first, count) and name not in SHARED:
        return spread([value[rows] for value, _, rows in values], shape)
    return first


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == rows


def _is_repeated(value: Any, rows: int, name: str) -> bool:
    return name in REPEATED and isinstance(value, list) and len(value) == rows and all(one == value[0] for one in value)


def _timesteps(value: Any, rows: int) -> torch.Tensor:
    """Return the timestep of each row of a call, (rows,), of as many or of fewer, which are then all the same."""
    given = torch.as_tensor(value).reshape(-1).float()
    return given if len(given) == rows else given[:1].expand(rows)
