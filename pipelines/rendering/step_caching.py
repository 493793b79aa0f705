"""Runs the outer blocks of a denoiser alone at some steps, with what the inner blocks made of the same row at an earlier step.

Of a UNet the outer blocks are the first on its way down and the last on its way up; what goes from the inner blocks into the last
is kept (DeepCache, arXiv:2312.00858). Of a transformer the outer block is the first; what all others add to its output is kept
(FirstBlockCache). Which steps are so answered is fixed by the config, never by what a row's values are, let alone its companions':
so rows that run all blocks and rows that do not make batches of their own, of the same shape.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from promptmill.configs.step_caches import StepCache
from promptmill.manifests.requests import Request
from promptmill.pipelines.models.cached_blocks import TRANSFORMERS, UNET, Blocks
from promptmill.pipelines.rendering.rows import count_of
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.evaluations import StepsLeft, steps_of

INNER = "inner"  # the argument of a call that the inner blocks' part is given by

Run = Callable[..., Any]


@dataclass
class Kept:
    """Holds the outputs of the inner blocks for the samples of one pipeline call.

    A pipeline may call its denoiser several times a step, once for each half of guidance; each of these calls has its own part.

    Attributes:
        schedule: The steps that are answered from the cache.
        steps: The number of steps of the pipeline call.
        step: The present step, counted from 0.
        calls: The denoiser's calls in this step so far.
        parts: What the inner blocks made at an earlier step, (rows, …), by the number of the call in its step.
        cached: The rows so far that were answered from the cache.
    """

    schedule: StepCache
    steps: int
    step: int = 0
    calls: int = 0
    parts: dict[int, torch.Tensor] = field(default_factory=dict)
    cached: int = 0

    @classmethod
    def of(cls, schedule: StepCache, request: Request, scheduler: Any, left: StepsLeft) -> "Kept":
        """Return the empty cache of a pipeline call, whose scheduler ends each of its steps.

        Args:
            schedule: The steps that are answered from the cache.
            request: The request.
            scheduler: The call's own scheduler, whose `step` is listened to from now on.
            left: How many steps a strength leaves.
        """
        kept = cls(schedule, steps_of(request.steps, request.strength, left) * getattr(scheduler, "order", 1))
        step = scheduler.step

        @wraps(step)  # pipelines look at its arguments
        def listening(*args: Any, **kwargs: Any) -> Any:
            made = step(*args, **kwargs)
            kept.step, kept.calls = kept.step + 1, 0
            return made

        scheduler.step = listening
        return kept

    def call(self, hold: Run, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a denoiser that takes and returns the part of its inner blocks, as `Shortened` does, and return its answer."""
        number, self.calls = self.calls, self.calls + 1
        part, rows = self.parts.pop(number, None), count_of([*args, *kwargs.values()])
        if part is not None and len(part) == rows and self.schedule.answers(self.step, self.steps):
            self.cached += rows
            answer, _ = hold(*args, **kwargs, **{INNER: part})
        else:
            answer, part = hold(*args, **kwargs, **{INNER: None})
        if self.schedule.answers(self.step + 1, self.steps):
            self.parts[number] = part
        return answer


class Shortened:
    """Runs a denoiser, by keyword, whole or without its inner blocks.

    A call with `INNER` returns a pair: the answer, and what the inner blocks made. Where `INNER` is what they made earlier, the
    inner blocks do not run, and the second is None; where it is None, all blocks run. A call without `INNER` is the denoiser's own.

    Args:
        denoiser: The denoiser.
        run: Its call.

    Raises:
        ModelError: The blocks are not as they are known.
    """

    def __init__(self, denoiser: Any, run: Run):
        kind = type(denoiser).__name__
        blocks = TRANSFORMERS.get(kind)
        made = _unet(denoiser, run) if kind == UNET else _transformer(denoiser, run, blocks) if blocks else None
        if made is None:
            unlike = f"the blocks of this {kind} are not those that a step cache goes with; leave it out"
            raise ModelError(f"model.kernels.cache: {unlike}")
        self._denoiser, self._run, (self._whole, self._outer) = denoiser, run, made
        self._given: dict[str, Any] = {}

    def __call__(self, **given: Any) -> Any:
        if INNER not in given:
            return self._run(**given)
        inner = given.pop(INNER)
        if inner is not None:
            return self._outer(inner, **given), None
        self._given = self._given or {name: _shape(value) for name, value in given.items()}
        return self._whole(**given)

    @cached_property
    def share(self) -> float:
        """Return the share of a whole evaluation's work that one without the inner blocks takes: of multiplications in products of
        matrices, convolutions and attention, at the shapes of the first batch that ran so. No weights are needed to count them.
        """
        with torch.device("meta"):
            bare = type(self._denoiser).from_config(self._denoiser.config)
            torch.nn.Module.to(bare, self._denoiser.dtype)
        alike, work = Shortened(bare, bare.forward), []
        inner = None
        for _ in range(2):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                _, inner = alike(**self._given, **{INNER: inner})
            work.append(counter.get_total_flops())
        return work[1] / work[0]


def shortened_of(denoiser: Any, run: Run, needed: bool) -> Shortened | None:
    """Return the call of a denoiser that may be run without its inner blocks; None where that is neither possible nor needed.

    Raises:
        ModelError: The blocks are not as they are known, and it is needed.
    """
    try:
        return Shortened(denoiser, run)
    except ModelError:
        if needed:
            raise
        return None


def _shape(value: Any) -> Any:
    """Return a value with tensors of the same shapes, which hold nothing."""
    if isinstance(value, torch.Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, Mapping):
        return {name: _shape(one) for name, one in value.items()}
    return type(value)(map(_shape, value)) if isinstance(value, list | tuple) else value


class _Instead:
    """Replaces a block of a denoiser in calls, and is the block in all else."""

    def __init__(self, block: Any, call: Run):
        self._block, self._call = block, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


@contextmanager
def _replaced(module: Any, **parts: Any) -> Iterator[None]:
    """Let a module find other parts under these names; its own stay where they are, with their weights."""
    vars(module).update(parts)
    try:
        yield
    finally:
        for name in parts:
            del vars(module)[name]


def _unet(unet: Any, run: Run) -> tuple[Run, Run] | None:
    """Return the calls of a UNet that runs all blocks, and of one that runs the outer ones; None where its blocks are others."""
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    skips = sum(len(block.resnets) for block in up)  # outputs on the way down, each of which goes into a block on the way up
    passed = 1 + sum(len(block.resnets) + (getattr(block, "downsamplers", None) is not None) for block in down)
    own = 1 + len(down[0].resnets)  # of these, the outer blocks'
    if len(down) < 2 or len(up) != len(down) or skips != passed or len(up[-1].resnets) > own:
        return None
    middle = {} if unet.mid_block is None else {"mid_block": unet.mid_block}

    def whole(**given: Any) -> Any:
        seen: list[torch.Tensor] = []

        def last(*args: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            seen.append(hidden_states)
            return up[-1](*args, hidden_states=hidden_states, **kwargs)

        with _replaced(unet, up_blocks=[*up[:-1], _Instead(up[-1], last)]):
            return run(**given), seen[0]

    def outer(inner: torch.Tensor, **given: Any) -> Any:
        nothing = inner.new_zeros(())  # whatever is added to it, no block sees the sum

        def descending(missing: int) -> Run:
            return lambda *args, **kwargs: (nothing, (nothing,) * missing)

        def last(*args: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            return up[-1](*args, hidden_states=inner, **kwargs)

        skipped = [_Instead(block, descending(0 if number else skips - own)) for number, block in enumerate(down[1:])]
        ascending = [_Instead(block, lambda *args, **kwargs: nothing) for block in up[:-1]]
        between = {name: _Instead(block, lambda *args, **kwargs: nothing) for name, block in middle.items()}
        if (residuals := given.get("down_block_additional_residuals")) is not None:
            given["down_block_additional_residuals"] = (*residuals[:own], *[nothing] * (len(residuals) - own))
            given["mid_block_additional_residual"] = nothing
        if (features := given.get("down_intrablock_additional_residuals")) is not None:
            # Without cross-attention a block's feature is added behind its last output that the outer blocks read.
            given["down_intrablock_additional_residuals"] = [*features[: bool(getattr(down[0], "has_cross_attention", False))]]
        with (
            _replaced(down[0], downsamplers=None),
            _replaced(unet, down_blocks=[down[0], *skipped], up_blocks=[*ascending, _Instead(up[-1], last)], **between),
        ):
            return run(**given)

    return whole, outer


def _transformer(transformer: Any, run: Run, how: Blocks) -> tuple[Run, Run] | None:
    """Return the calls of a transformer that runs all blocks, and of one that runs the first; None where it has no second."""
    lists = {name: list(getattr(transformer, name)) for name in how.lists}
    if len(blocks := [block for some in lists.values() for block in some]) < 2:
        return None
    second, last = blocks[1], blocks[-1]

    def replaced(calls: Mapping[int, Run]) -> Any:
        def instead(block: Any) -> Any:
            return _Instead(block, calls[id(block)]) if id(block) in calls else block

        return _replaced(transformer, **{name: list(map(instead, some)) for name, some in lists.items()})

    def whole(**given: Any) -> Any:
        seen: list[torch.Tensor] = []

        def noting(block: Any) -> Run:
            def call(*args: Any, **kwargs: Any) -> Any:
                if block is second:
                    seen.append(_tokens("picture", args, kwargs))
                made = block(*args, **kwargs)
                if block is last:
                    seen.append(made[how.returns.index("picture")] if isinstance(made, tuple) else made)
                return made

            return call

        with replaced({id(block): noting(block) for block in (second, last)}):
            answer = run(**given)
        return answer, seen[-1] - seen[0]

    def outer(inner: torch.Tensor, **given: Any) -> Any:
        seen: list[torch.Tensor] = []

        def passing(block: Any) -> Run:
            def call(*args: Any, **kwargs: Any) -> Any:
                if block is second:
                    seen.append(_tokens("picture", args, kwargs))
                # What ControlNets add in between is a part of what was kept.
                picture = seen[0] + inner if block is last else _tokens("picture", args, kwargs)
                made = tuple(picture if one == "picture" else _tokens(one, args, kwargs) for one in how.returns)
                return made if len(made) > 1 else picture

            return call

        with replaced({id(block): passing(block) for block in blocks[1:]}):
            return run(**given)

    return whole, outer


def _tokens(stream: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the tokens that a block is given of the picture or of the text, by name or as its first and second argument."""
    name, place = ("hidden_states", 0) if stream == "picture" else ("encoder_hidden_states", 1)
    return kwargs[name] if name in kwargs else args[place]
