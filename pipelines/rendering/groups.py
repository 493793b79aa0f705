"""Holds the candidates that wait for the engine, and those that share one pipeline call."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from promptmill.pipelines.models.family import Family
from promptmill.pipelines.rendering.preparing import Job
from promptmill.pipelines.rendering.step_caching import Kept
from promptmill.pipelines.work.results import Candidate, Failure
from promptmill.pipelines.work.units import bucket_of

Settled = Callable[[Job, Candidate | Failure], None]


@dataclass
class Waiting:
    """Holds a job in the queue, and the function to call with its result.

    Attributes:
        job: The candidate to render.
        settled: Called with the job and its candidate or failure.
        apart: Whether the job goes through a call without other requests, since a call failed that it shared.
        alone: Whether the job goes through batches without other requests, since a batch failed that it shared.
    """

    job: Job
    settled: Settled
    apart: bool = False
    alone: bool = False

    def bucket(self, family: Family) -> Hashable:
        """Return the key that the members of one group share."""
        request = self.job.request
        if family.single:
            return id(self)
        texts = (request.prompt, request.negative_prompt) if family.prompts_apart else bool(request.negative_words)
        apart = self.apart or (family.references and (request.init_image is not None or bool(request.references)))
        apart = apart or (family.one_mask and request.repaints)
        if family.boxes and request.init_image is not None:
            return id(self)
        # Of transformers those without references go through calls of their own; a scale of 0 is none to an adapter, but to Redux.
        several = family.image_prompts not in (None, "unet") and request.references
        embedded = tuple(sorted({bool(one.scale) for one in several})) if several else ()
        placed = self.job.placed
        return (bucket_of(request), embedded, placed.preview, placed.cache, texts, id(placed) if apart else None)


@dataclass
class Group:
    """Holds the candidates that go through one pipeline call.

    Attributes:
        rows_each: Rows of the denoiser's batch that a candidate takes at a time.
        evaluations: Rows of a candidate that have gone through the denoiser, or wait to.
        elsewhere: Whether the call is at the denoiser of the prior or the refiner, and not at the base's.
        decoding: Whether the call has left the denoisers.
        texts: The texts of the denoiser's first call, which are those that guidance leads to, where it leads away by calls of their
            own.
        references: What the denoiser is told of the members' reference images, once it has been called, in calls that guidance
            leads to, and in those that it leads away from.
        faces: The tokens of the members' faces by the type of references, once a ControlNet that reads these has been called.
        fused: Whether the rows go through the layers that read boxes, as the call has them now.
        kept: What the denoiser's inner blocks made, where a step cache is on.
    """

    members: list[Waiting]
    rows_each: int
    evaluations: int = 0
    elsewhere: bool = False
    decoding: bool = False
    texts: torch.Tensor | None = None
    references: dict[bool, dict[str, Any]] = field(default_factory=dict)
    faces: dict[str, torch.Tensor] = field(default_factory=dict)
    fused: bool = True
    kept: Kept | None = None

    @property
    def rows(self) -> int:
        return 0 if self.decoding else self.rows_each * len(self.members)
