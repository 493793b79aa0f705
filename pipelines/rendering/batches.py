"""Renders by diffusers' pipelines in batches of one shape: for the families whose denoiser the slot engine does not join."""

import time
from collections.abc import Hashable, Iterator
from itertools import groupby
from typing import Any

import torch

from promptmill.pipelines.rendering.calls import call, candidate
from promptmill.pipelines.rendering.loading import LoadedModel
from promptmill.pipelines.rendering.preparing import Job
from promptmill.pipelines.rendering.slots import Settled, is_fatal
from promptmill.pipelines.rendering.text import TextEncoder
from promptmill.pipelines.work.results import Failure
from promptmill.pipelines.work.units import bucket_of


class Batches:
    """Renders fixed batches of one bucket each, short ones padded.

    Args:
        model, text: The loaded model and its text encoder.
        batch: Candidates a batch.
    """

    def __init__(self, model: LoadedModel, text: TextEncoder, batch: int):
        self._model, self._text, self._batch = model, text, batch
        self._queue: list[tuple[list[Job], Settled]] = []
        self._evaluated, self._seconds = 0, 0.0
        self._counting = model.denoiser.register_forward_pre_hook(self._count, with_kwargs=True)

    def add(self, jobs: list[Job], settled: Settled, ahead: bool = False) -> None:
        """Queue jobs; `settled` is called once for each. `ahead` has no effect: a batch is full or not whatever the order."""
        buckets: dict[Hashable, list[Job]] = {}
        for job in jobs:
            buckets.setdefault((bucket_of(job.request), job.placed.preview), []).append(job)
        self._queue += [(some, settled) for some in buckets.values()]

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def close(self) -> None:
        """Remove the hook that counts evaluations, so that the model is as it was."""
        self._counting.remove()

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in diffusers' pipelines so far, models included."""
        return {"denoise": self._seconds}

    def step(self) -> None:
        """Render the jobs of one bucket."""
        jobs, settled = self._queue.pop(0)
        try:
            made = list(self._rendered(jobs))
        except Exception as error:  # whatever diffusers raises is a fact about these requests, not about the run
            if is_fatal(error):
                raise
            requests = [list(some) for _, some in groupby(jobs, key=lambda job: job.placed.row)]
            if len(requests) > 1:
                self._queue[:0] = [(some, settled) for some in requests]
                return
            reason = " ".join(str(error).split())[:500]
            for job in jobs:
                settled(job, Failure("render_error", f"{type(error).__name__}: {reason}"))
            return
        for job, one in zip(jobs, made, strict=True):
            settled(job, one)

    def _rendered(self, jobs: list[Job]) -> Iterator[Any]:
        request = jobs[0].request
        pipeline = self._model.pipeline(request.mode, [control.type for control in request.controls], request.scheduler)
        self._model.adapt(tuple((lora.name, lora.scale) for lora in request.loras))
        for start in range(0, len(jobs), self._batch):
            some = jobs[start : start + self._batch]
            before = self._evaluated
            # One shape always: at another batch size the same sample has other bits.
            started = time.monotonic()
            made = call(pipeline, self._text, some + [some[-1]] * (self._batch - len(some)))
            self._seconds += time.monotonic() - started
            evaluations = (self._evaluated - before) // self._batch
            yield from (candidate(job, *one, evaluations) for job, one in zip(some, made, strict=False))

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample" if "sample" in kwargs else "hidden_states"]
        self._evaluated += len(sample)
