"""Holds the slot engine: candidates that differ in mode, steps, scheduler, guidance and strength share one full denoising batch.

A group is some candidates of one bucket (`bucket_of`), which diffusers' own pipeline renders in one call. The group's model calls
are held and joined with those of the other groups (`rendering.batching`). The denoiser's batch has room for as many candidates with
guidance as the config says; such a candidate takes one, two or three rows, by its family, and one without guidance takes one. Rows
that a group leaves as it ends are the next group's at once.
"""

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from promptmill.manifests.requests import Request
from promptmill.pipelines.rendering.batching import Joined
from promptmill.pipelines.rendering.calls import call, candidate
from promptmill.pipelines.rendering.copies import Copy
from promptmill.pipelines.rendering.grounding import with_fusers
from promptmill.pipelines.rendering.group_arguments import saying_fused, with_cache, with_face, with_references
from promptmill.pipelines.rendering.groups import Group, Settled, Waiting
from promptmill.pipelines.rendering.loaded_model import LoadedModel
from promptmill.pipelines.rendering.modules import (
    decoded_in_its_dtype,
    encoded_apart,
    moded_by_row,
    row_by_row,
    scaled_after,
    turned,
    without_generator,
)
from promptmill.pipelines.rendering.preparing import Job
from promptmill.pipelines.rendering.step_caching import Kept, shortened_of
from promptmill.pipelines.rendering.text import TextEncoder
from promptmill.pipelines.work.errors import is_fatal
from promptmill.pipelines.work.results import Candidate, Failure
from promptmill.pipelines.work.units import kind_of

MOST_LENGTHS = 1000  # of calls that are remembered, by the kind of request
MOST_BATCHES = 4  # of rows that are under way at once
# Pixels that a VAE decodes at once: four images of 1024 x 1024. Of eight, a tensor in the last layers of SDXL's has 2^31 elements,
# more than some kernels count; and more images at once are no faster.
DECODED_PIXELS = 4 * 1024 * 1024


class SharedError(Exception):
    """Reports an error of a batch that held rows of several calls, so that it does not say which of them is at fault."""


class Slots:
    """Renders with one loaded model, whose denoising batch the groups share.

    Args:
        model: The loaded model.
        batch: Candidates with guidance that fill the batch.
    """

    def __init__(self, model: LoadedModel, batch: int):
        self.model = model
        self.batch, self._family = batch, model.family
        self._queue: deque[Waiting] = deque()
        self._groups: dict[greenlet, Group] = {}
        self._copies: deque[tuple[greenlet, Copy]] = deque()
        self._kind: Hashable = None
        self._is_alone = False  # whether the latest group renders without others
        self._rows = self._family.rows * batch
        self._rows_seen: dict[Hashable, int] = {}
        self._evaluations_seen: dict[Hashable, int] = {}
        self._held: list[tuple[Any, str, Any]] = []
        vae, denoiser = model.vae, model.denoiser
        habits = {"multiple": self._family.multiple, "longest": self._family.longest}
        self.denoiser = Joined.of(denoiser.forward, self._rows, called=self._denoising, apart=self._pictured, **habits)
        hold = self.denoiser.hold
        if (shortened := shortened_of(denoiser, self.denoiser.run, needed=model.cache is not None)) is not None:
            self.denoiser.run, hold = shortened, with_cache(hold, self._calling)
        self.shortened = shortened
        if self._family.boxes:
            self.denoiser.run, hold = with_fusers(denoiser, self.denoiser.run), saying_fused(hold, self._calling)
        if model.references:
            self.denoiser.run = model.references.scaled(self.denoiser.run)
            hold = with_references(hold, model.references, self._calling)
        if self._family.second:
            self.denoiser.run = turned(self.denoiser.run, self._family.second)
            hold = turned(hold, self._family.second)
        self._hold(denoiser, "forward", hold)
        for layer in denoiser.modules() if self._family.experts else ():
            if type(layer).__name__ == self._family.experts:
                self._hold(layer, "forward", row_by_row(layer.forward))
        self.refiners: list[Joined] = []
        if model.refiner:
            unet = model.refiner.denoiser
            self.refiners.append(Joined.of(unet.forward, self._rows, called=partial(self._denoising, elsewhere=True), **habits))
            self._hold(unet, "forward", self.refiners[0].hold)
        self.priors: list[Joined] = []
        if (first := model.first) is not None:
            self.priors.append(Joined.of(first.forward, self._rows, called=self._before))
            self._hold(first, "forward", self.priors[0].hold)
        self.controlnets: list[Joined] = []
        # In guess mode a ControlNet is called for the guided half alone.
        guessing = {id(model.controlnets[kind]) for kind, one in model.controls.items() if one.guess}
        # A T2I-Adapter reads each control image once.
        once = {id(net) for kind, net in model.controlnets.items() if model.control_class(kind).part == "adapter"}
        for net in {id(net): net for net in model.controlnets.values()}.values():
            rows = batch if id(net) in guessing | once else self._rows
            joined = Joined.of(net.forward, rows, multiple=self._family.multiple)
            self.controlnets.append(joined)
            held = joined.hold if id(net) in once else scaled_after(moded_by_row(joined.hold), net)
            faces = [one.face for kind, one in model.controls.items() if one.face and model.controlnets[kind] is net]
            if faces:
                assert model.references is not None
                held = with_face(held, model.references, faces[0], self._calling)
            self._hold(net, "forward", held)
        # Of a model that makes pixels nothing ever waits for the decoder.
        decode = vae.decode if vae else denoiser.forward
        self.decoder = Joined.of(decode, batch, called=self._decoding, fitting=partial(_decoded_at_once, model.base))
        if vae is not None:
            self.decoder.run = decoded_in_its_dtype(vae)
            self._hold(vae, "decode", without_generator(self.decoder.hold))
            self._hold(vae, "encode", encoded_apart(vae.encode))
        self.texts: list[TextEncoder] = []
        others = [vae, denoiser, first]
        for name, part in model.parts.items():
            alone = name == "safety_checker" or (name == "image_encoder" and model.references is not None)
            if name in self._family.by_itself or (name == "prior.image_encoder" and part is not None):
                self._hold(part, "forward", encoded_apart(part.forward))
            elif isinstance(part, torch.nn.Module) and not any(part is other for other in others) and not alone:
                self.texts.append(TextEncoder(part, batch, self._family.length_first))
                self._hold(part, "forward", self.texts[-1].hold)

    def _hold(self, module: Any, name: str, instead: Callable[..., Any]) -> None:
        self._held.append((module, name, module.__dict__.get(name)))
        setattr(module, name, instead)

    def close(self) -> None:
        """Give the model its own calls back."""
        for module, name, own in reversed(self._held):
            delattr(module, name)  # uncovers the class's own
            if own is not None:
                setattr(module, name, own)  # a hook of diffusers', as of blocks that are offloaded

    def add(self, jobs: list[Job], settled: Settled, ahead: bool = False) -> None:
        """Queue jobs; `settled` is called once for each. Jobs that share most stand together, the longest first.

        Args:
            jobs: The jobs, of one kind where they go ahead.
            settled: Called with each job and its candidate or failure.
            ahead: Whether the jobs go before the waiting jobs of their kind. The finals of a cascade, few and long, would otherwise
                begin after all drafts of another unit, and run in a half empty batch.
        """
        waiting = [Waiting(job, settled) for job in jobs]
        if self.model.references is not None:
            self.model.references.expect(jobs, anew=not self.busy)
        family = self._family
        waiting.sort(
            key=lambda one: (
                str(kind_of(one.job.request)),
                str(_pictured(one.job)),
                -one.job.request.steps,
                "" if family.single else str(self._bucket(one)),
            )
        )
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

    def run(self, jobs: list[Job]) -> list[Failure]:
        """Render jobs with nothing beside them, drop their images, and return their failures."""
        failures: list[Failure] = []

        def settled(job: Job, made: Candidate | Failure) -> None:
            if isinstance(made, Failure):
                failures.append(made)

        self.add(jobs, settled)
        while self.busy:
            self.step()
        return failures

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent inside of the models so far."""
        parts = (self._encoders, self._denoisers, self.controlnets)
        text, denoise, control = (sum(joined.stopwatch.seconds for joined in some) for some in parts)
        return {"text": text, "denoise": denoise, "control": control, "decode": self.decoder.stopwatch.seconds}

    @property
    def _encoders(self) -> list[Joined]:
        return [text.joined for text in self.texts]

    @property
    def _denoisers(self) -> list[Joined]:
        return [*self.priors, self.denoiser, *self.refiners]

    @property
    def share(self) -> float:
        """Return the share of the denoisers' rows so far that held a wanted candidate."""
        rows, calls = (sum(getattr(joined, name) for joined in self._denoisers) for name in ("rows", "calls"))
        return rows / max(1, calls * self._rows)

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
        try:
            answered = joined.run_batch()
        except Exception as error:  # concerns those whose rows were in the batch
            if is_fatal(error):
                raise
            callers = joined.give_up_batch()
            for caller in callers:
                self._go_on(caller, partial(caller.throw, error if len(callers) == 1 else SharedError(error)))
            return
        # A GPU computes the batch by now, and the next groups begin while it does, in the rows of those who are done with it.
        self._admit(sum(self._groups[caller].rows for caller, _ in answered if self._is_last(self._groups[caller])))
        for caller, answer in answered:
            self._go_on(caller, partial(caller.switch, answer))

    def _is_last(self, group: Group) -> bool:
        """Return whether a group's latest call of the denoiser is its last one, as it was for its like."""
        return not group.decoding and group.evaluations == self._evaluations_seen.get(_length(group.members[0].job.request))

    def _next(self) -> Joined | None:
        # What waits for the base's groups to come is run once it fills a batch, or once nothing else is left.
        several = (self.decoder, *self.refiners, *([*self.priors, self.denoiser] if self.priors else []))
        if (full := next((one for one in several if one.is_full), None)) is not None:
            return full
        # Texts and ControlNets first: their answers go into the denoiser's batch.
        order = (*self._encoders, *self.controlnets, *self._denoisers, self.decoder)
        return next((joined for joined in order if joined.waiting), None)

    def _admit(self, leaving: int = 0) -> None:
        """Start queued groups in the rows that are free, and in those that are about to be."""
        while self._queue:
            first = self._queue[0]
            kind = kind_of(first.job.request)
            if self._groups and (kind != self._kind or first.alone or self._is_alone):
                return
            rows_each = self._rows_of(first.job)
            under_way = sum(group.rows for group in self._groups.values())
            # Of several kinds of calls (texts of several lengths), more are under way than fill one batch, so that one kind does.
            elsewhere = sum(group.rows for group in self._groups.values() if group.elsewhere)
            sharing = under_way - leaving - elsewhere - self.denoiser.waiting_rows + self.denoiser.most_alike
            room = (self._rows - sharing) // rows_each
            # A candidate of more rows than a batch has goes alone, in several.
            if (room < 1 and self._groups) or under_way > MOST_BATCHES * self._rows:
                return
            room = max(1, room)
            if kind != self._kind:
                self._kind = kind
                self.model.adapt(self.model.adapted_by(first.job.request))
                for text in self.texts:
                    text.adapted = _loras(first.job)
            self._is_alone = first.alone
            members = [self._queue.popleft()]
            bucket = self._bucket(first)
            while self._queue and len(members) < room and self._bucket(self._queue[0]) == bucket:
                members.append(self._queue.popleft())
            self._start(Group(members, rows_each, elsewhere=bool(self.priors)))

    def _bucket(self, waiting: Waiting) -> Hashable:
        """Return the key that the members of one group share; prompts that are encoded here go through calls of their own."""
        request = waiting.job.request
        texts = self.model.weighted
        own = (request.prompt, request.negative_prompt, request.syntax) if texts is not None and texts.needed(request) else None
        return (waiting.bucket(self._family), own)

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
        pipeline = self.model.pipeline(request.mode, [control.type for control in request.controls], request.scheduler)
        for name in self._family.guiders:
            if (guider := getattr(pipeline, name)) is not None:
                setattr(pipeline, name, guider.new(guidance_scale=request.guidance_scale))
        if self._family.boxes:
            pipeline.enable_fuser = partial(setattr, group, "fused")
        for name, value in self._family.attributes.items():
            setattr(pipeline, name, value(request, pipeline.vae_scale_factor))
        if self.shortened and (schedule := jobs[0].placed.cache or self.model.cache):
            group.kept = Kept.of(schedule, request, pipeline.scheduler, self._family.steps_left)
        made = call(pipeline, self.model, jobs, self._wait)
        if len(self._evaluations_seen) == MOST_LENGTHS:
            self._evaluations_seen.clear()
        self._evaluations_seen[_length(request)] = group.evaluations
        cached = group.kept.cached // len(jobs) if group.kept else 0
        for place, member in enumerate(group.members):
            member.settled(member.job, candidate(member.job, *made[place], group.evaluations, cached))

    def _failed(self, group: Group, error: Exception) -> None:
        if is_fatal(error):
            raise error
        shared = isinstance(error, SharedError)
        if shared or len({id(member.job.placed) for member in group.members}) > 1:
            # One of several requests is at fault: each again by itself.
            for member in reversed(group.members):
                member.apart, member.alone = True, member.alone or shared
                self._queue.appendleft(member)
            return
        reason = " ".join(str(error).split())[:500]
        for member in group.members:
            member.settled(member.job, Failure("render_error", f"{type(error).__name__}: {reason}"))

    def _guided(self, job: Job) -> bool:
        return self.model.guided(job.request)

    def _rows_of(self, job: Job) -> int:
        """Return the rows of the denoiser's batch that a candidate takes: as its like have taken, where there were some."""
        guided = self._guided(job)
        return self._rows_seen.get((job.request.mode, guided), self._family.rows if guided else 1)

    def _wait(self, copy: Copy) -> None:
        """Stop the calling greenlet until its images have come to the host; the denoiser goes on meanwhile."""
        if not copy.done:
            caller = getcurrent()
            self._copies.append((caller, copy))
            assert caller.parent is not None
            caller.parent.switch()

    def _calling(self) -> Group:
        return self._groups[getcurrent()]

    def _before(self, caller: greenlet, rows: int) -> None:
        group = self._groups[caller]
        group.evaluations += max(1, rows // len(group.members))

    def _denoising(self, caller: greenlet, rows: int, elsewhere: bool = False) -> None:
        group = self._groups[caller]
        group.elsewhere = elsewhere
        group.rows_each = max(1, rows // len(group.members))
        group.evaluations += group.rows_each
        job = group.members[0].job
        self._rows_seen[job.request.mode, self._guided(job)] = group.rows_each

    def _pictured(self, caller: greenlet) -> Hashable:
        """Return the sizes of a call's further pictures: a denoiser is told their places in one argument for all rows."""
        return _pictured(self._groups[caller].members[0].job)

    def _decoding(self, caller: greenlet, rows: int) -> None:
        self._groups[caller].decoding = True


def _decoded_at_once(base: Any, given: Mapping[str, Any]) -> int:
    """Return how many images of the latents of a call are decoded at once."""
    latents = next(iter(given.values()))
    scale = getattr(base, "vae_scale_factor", 8)
    return max(1, DECODED_PIXELS // (latents.shape[-1] * latents.shape[-2] * scale**2))


def _length(request: Request) -> Hashable:
    """Return the key of requests that call the denoiser equally often, in nearly all families."""
    return (request.mode, request.scheduler, request.steps, request.strength, request.guidance_scale > 1, request.is_led)


def _pictured(job: Job) -> Hashable:
    return tuple(one.shape for one in job.conditioning.pictures)


def _loras(job: Job) -> tuple[tuple[str, float], ...]:
    return tuple((lora.name, lora.scale) for lora in job.request.loras)
