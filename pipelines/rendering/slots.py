"""Holds the slot engine: candidates that differ in mode, steps, scheduler, guidance and strength share one full denoising batch.

A group is some candidates of one bucket (`bucket_of`), which diffusers' own pipeline renders in one call. The group's model calls
are held and joined with those of the other groups (`rendering.batching`). The denoiser's batch has twice as many rows as the config
says candidates: a candidate with guidance takes two rows, one without takes one. Rows that a group leaves as it ends are the next
group's at once.
"""

import copy
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet

from promptmill.pipelines.rendering.batching import Joined
from promptmill.pipelines.rendering.calls import call, candidate
from promptmill.pipelines.rendering.copies import Copy
from promptmill.pipelines.rendering.loading import LoadedModel
from promptmill.pipelines.rendering.preparing import Job
from promptmill.pipelines.rendering.text import TextEncoder
from promptmill.pipelines.work.results import Candidate, Failure
from promptmill.pipelines.work.units import bucket_of, kind_of

Settled = Callable[[Job, Candidate | Failure], None]


@dataclass
class Waiting:
    """Holds a job in the queue, and the function to call with its result; `apart` from other requests once it failed among them."""

    job: Job
    settled: Settled
    apart: bool = False

    @property
    def bucket(self) -> Hashable:
        return (bucket_of(self.job.request), self.job.placed.preview, id(self.job.placed) if self.apart else None)


@dataclass
class Group:
    """Holds the candidates that go through one pipeline call.

    Attributes:
        rows_each: Rows of the denoiser's batch that a candidate takes.
        steps: Denoiser calls so far.
        decoding: Whether the call has left the denoiser.
    """

    members: list[Waiting]
    rows_each: int
    steps: int = 0
    decoding: bool = False

    @property
    def rows(self) -> int:
        return 0 if self.decoding else self.rows_each * len(self.members)


class Slots:
    """Renders with one loaded model, whose denoising batch the groups share.

    Args:
        model, text: The loaded model and its text encoder.
        batch: Candidates with guidance that fill the batch.
    """

    def __init__(self, model: LoadedModel, text: TextEncoder, batch: int):
        self._model, self._text = model, text
        self._queue: deque[Waiting] = deque()
        self._groups: dict[greenlet, Group] = {}
        self._copies: deque[tuple[greenlet, Copy]] = deque()
        self._kind: Hashable = None
        self._rows = 2 * batch
        vae, denoiser = model.base.vae, model.denoiser
        names = ("sample", "timestep", "encoder_hidden_states")
        self._held = [(denoiser, "forward"), (vae, "decode"), *((net, "forward") for net in model.controlnets.values())]
        self.denoiser = Joined(denoiser.forward, names, self._rows, self._denoising)
        denoiser.forward = self.denoiser.hold
        self.controlnets: list[Joined] = []
        for net in model.controlnets.values():
            joined = Joined(net.forward, (*names, "controlnet_cond"), self._rows)
            self.controlnets.append(joined)
            net.forward = _scaled_after(joined)
        self.decoder = Joined(_in_its_dtype(vae), ("z",), batch, self._decoding)
        vae.decode = _without_generator(self.decoder)

    def close(self) -> None:
        """Give the model its own calls back."""
        for module, name in self._held:
            delattr(module, name)  # uncovers the class's own

    def add(self, jobs: list[Job], settled: Settled, ahead: bool = False) -> None:
        """Queue jobs; `settled` is called once for each. Jobs that share most stand together, the longest first.

        Args:
            jobs: The jobs, of one kind where they go ahead.
            settled: Called with each job and its candidate or failure.
            ahead: Whether the jobs go before the waiting jobs of their kind. The finals of a cascade, few and long, would otherwise
                begin after all drafts of another unit, and run in a half empty batch.
        """
        waiting = [Waiting(job, settled) for job in jobs]
        waiting.sort(key=lambda one: (str(kind_of(one.job.request)), -one.job.request.steps, str(one.bucket)))
        queue = list(self._queue)
        place = len(queue)
        if ahead:
            kinds = [kind_of(one.job.request) for one in queue]
            kind = kind_of(jobs[0].request)
            place = kinds.index(kind) if kind in kinds else place
        self._queue = deque([*queue[:place], *waiting, *queue[place:]])

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._groups)

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent inside of the models so far."""
        control = sum(joined.seconds for joined in self.controlnets)
        return {"denoise": self.denoiser.seconds, "control": control, "decode": self.decoder.seconds}

    @property
    def share(self) -> float:
        """Return the share of the denoiser's rows so far that held a wanted candidate."""
        return self.denoiser.rows / max(1, self.denoiser.calls * self._rows)

    def step(self) -> None:
        """Start queued groups, run one padded batch of one module, and resume the pipelines that the batch completed.

        Pipelines whose images have reached the host are resumed too.
        """
        self._admit()
        joined = self._next()
        while self._copies and (joined is None or self._copies[0][1].done):
            caller, copy = self._copies.popleft()
            copy.wait()
            self._go_on(caller, caller.switch)
        if joined is None:
            return
        for caller, answer in joined.run_batch():
            self._go_on(caller, partial(caller.switch, answer))

    def _next(self) -> Joined | None:
        if self.decoder.waiting_rows >= self.decoder.shape:
            return self.decoder
        # ControlNets first: their answers go into the denoiser's batch.
        return next((joined for joined in (*self.controlnets, self.denoiser, self.decoder) if joined.waiting), None)

    def _admit(self) -> None:
        while self._queue:
            first = self._queue[0]
            kind = kind_of(first.job.request)
            if kind != self._kind and self._groups:
                return
            rows_each = 2 if self._guided(first.job) else 1
            room = (self._rows - sum(group.rows for group in self._groups.values())) // rows_each
            if room < 1:
                return
            if kind != self._kind:
                self._kind = kind
                self._model.adapt(_loras(first.job))
            members = [self._queue.popleft()]
            while self._queue and len(members) < room and self._queue[0].bucket == first.bucket:
                members.append(self._queue.popleft())
            self._start(Group(members, rows_each))

    def _start(self, group: Group) -> None:
        caller = greenlet(lambda: self._render(group))
        self._groups[caller] = group
        self._go_on(caller, caller.switch)

    def _go_on(self, caller: greenlet, resume: Callable[[], Any]) -> None:
        group = self._groups[caller]
        try:
            resume()
        except Exception as error:  # an error of diffusers concerns these requests only
            del self._groups[caller]
            self._failed(group, error)
            return
        if caller.dead:
            del self._groups[caller]

    def _render(self, group: Group) -> None:
        """Run one pipeline call for a group, in a greenlet of its own."""
        jobs = [member.job for member in group.members]
        request = jobs[0].request
        shared = self._model.pipeline(request.mode, [control.type for control in request.controls], request.scheduler)
        # A pipeline keeps its scheduler and some of its arguments on itself.
        pipeline = copy.copy(shared)
        pipeline.scheduler = self._model.scheduler(request.scheduler)
        made = call(pipeline, self._text, jobs, self._wait)
        for place, member in enumerate(group.members):
            member.settled(member.job, candidate(member.job, *made[place], group.rows_each * group.steps))

    def _failed(self, group: Group, error: Exception) -> None:
        if is_fatal(error):
            raise error
        if len({id(member.job.placed) for member in group.members}) > 1:
            # One of several requests is at fault: each again by itself.
            for member in reversed(group.members):
                member.apart = True
                self._queue.appendleft(member)
            return
        reason = " ".join(str(error).split())[:500]
        for member in group.members:
            member.settled(member.job, Failure("render_error", f"{type(error).__name__}: {reason}"))

    def _guided(self, job: Job) -> bool:
        # As diffusers decides it: a model distilled from guidance takes the scale as an input instead.
        return job.request.guidance_scale > 1 and getattr(self._model.denoiser.config, "time_cond_proj_dim", None) is None

    def _wait(self, copy: Copy) -> None:
        """Stop the calling greenlet until its images have come to the host; the denoiser goes on meanwhile."""
        if not copy.done:
            caller = getcurrent()
            self._copies.append((caller, copy))
            assert caller.parent is not None
            caller.parent.switch()

    def _denoising(self, caller: greenlet) -> None:
        self._groups[caller].steps += 1

    def _decoding(self, caller: greenlet) -> None:
        self._groups[caller].decoding = True


def is_fatal(error: Exception) -> bool:
    """Return whether the process cannot go on: memory ran out, or the GPU is in an undefined state."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "CUDA error" in str(error)


def _loras(job: Job) -> tuple[tuple[str, float], ...]:
    return tuple((lora.name, lora.scale) for lora in job.request.loras)


def _scaled_after(joined: Joined) -> Callable[..., Any]:
    """Return a ControlNet call whose scale, one for each call, is applied to the answer: the same product, after the batch."""

    def hold(*args: Any, conditioning_scale: float = 1.0, **kwargs: Any) -> Any:
        down, mid = joined.hold(*args, conditioning_scale=1.0, **kwargs)
        return [sample * conditioning_scale for sample in down], mid * conditioning_scale

    return hold


def _in_its_dtype(vae: Any) -> Callable[..., Any]:
    """Return a decoder that first converts the VAE to the dtype of the latents.

    SDXL's pipelines lift their VAE to fp32 around each use; between the two, another pipeline may have converted it back.
    """
    decode = vae.decode

    def run(z: Any, **options: Any) -> Any:
        if next(vae.parameters()).dtype != z.dtype:
            vae.to(z.dtype)
        return decode(z, **options)

    return run


def _without_generator(joined: Joined) -> Callable[..., Any]:
    """Return a decoder that drops generators: a KL autoencoder decodes without chance, but some pipelines pass one on."""

    def hold(*args: Any, generator: Any = None, **kwargs: Any) -> Any:
        return joined.hold(*args, **kwargs)

    return hold
