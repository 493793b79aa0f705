"""Cuts units: whole requests of one shard that can share GPU batches, cut by a plan, rendered and made durable as one piece."""

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from promptmill.configs.drafts import Draft, applied
from promptmill.configs.errors import shown
from promptmill.configs.parameters import FURTHER
from promptmill.configs.stages import StageOrCaptions
from promptmill.configs.step_caches import StepCache
from promptmill.manifests.requests import Request
from promptmill.pipelines.work.evaluations import STABLE_DIFFUSION, Counting, cached_evaluations, evaluations
from promptmill.pipelines.work.passes import Course, as_draft
from promptmill.pipelines.work.stages import size_after
from promptmill.shards.keys import parse

# Evaluations of the denoiser, for each place in the batch, that a unit aims at: two batches of 20 guided steps. The bytes do not
# depend on this number.
UNIT_EVALUATIONS = 80
# At most, of all candidates, and of all images behind a stage; three bytes each while they wait for a scorer.
UNIT_PIXELS = 128 * 2**20
SLICE_UNITS = 4  # a slice aims at the work of so many units: fewer parts to join, and a batch that stays full
PASS = "-pass-"  # in the names of parts that passes leave
STAGE = "-stage-"  # in the names of parts that stages begin with
SLICE_KEEPS = 4  # a slice has at least so many times `keep` candidates, since it encodes all images that may be kept


@dataclass(frozen=True)
class Placed:
    """Holds a request at its place.

    Attributes:
        row: Counted from 0 in its shard.
        images: SHA-256 of the files of its images as the plan saw them, by column (`init_image`, `mask_image`, `controls.0.image`,
            …); empty where images are only looked at when they are used.
        file: Index of the row's file in the manifest, counted from 0: the row's paths start from that file's folder.
        preview: Steps after which the image that is predicted then is decoded instead of the final one; used by calibration alone.
        cache: The steps that are cached, in place of the config's; used by calibration alone.
    """

    row: int
    request: Request
    images: Mapping[str, str] = field(default_factory=dict)
    file: int = 0
    preview: int | None = None
    cache: StepCache | None = None


@dataclass(frozen=True)
class Unit:
    """Holds requests of one kind and one shard; `number` counts from 0 in the shard.

    Attributes:
        row: Row of the only request, where the unit is a piece of one that did not get through as a whole, or a slice.
        generation: 0, or how often failed rows of the shard were tried again.
        course: The state of its requests, if they pass more than once; None: all their candidates are rendered in full at once.
        span: For a slice, the candidates of its only request that it renders, by their indices; None: all of them.
    """

    shard: int
    number: int
    requests: tuple[Placed, ...]
    row: int | None = None
    generation: int = 0
    course: Course | None = None
    span: range | None = None

    @property
    def name(self) -> str:
        """Return the unit's name: 000012-00003; a piece 000012-00003-00007; a slice 000012-00003-00007-0064-0127.

        A unit of a later generation is named 000012-00003.1. The name of a slice has its first and its last candidate, so that
        parts that were cut otherwise are never taken for it.
        """
        piece = "" if self.row is None else f"-{self.row:05d}"
        piece += "" if self.span is None else f"-{self.span[0]:04d}-{self.span[-1]:04d}"
        return f"{self.shard:06d}-{self.number:05d}{piece}" + (f".{self.generation}" if self.generation else "")

    def pass_name(self, number: int | str = "") -> str:
        """Return the name of a pass's part: 000012-00003-00007-pass-0002, of a later generation with a .1.

        Args:
            number: The number of the pass, counted from 0; without it, the beginning of all these names is returned.
        """
        (placed,) = self.requests
        begins = f"{self.shard:06d}-{self.number:05d}-{placed.row:05d}{PASS}"
        return begins if number == "" else f"{begins}{number:04d}" + (f".{self.generation}" if self.generation else "")

    def stage_name(self, number: int | str = "") -> str:
        """Return the name of the part that a stage begins with: 000012-00003-stage-0001, of a later generation with a .1.

        Args:
            number: The number of the stage, counted from 0; without it, the beginning of all these names is returned.
        """
        begins = f"{replace(self, generation=0).name}{STAGE}"
        return begins if number == "" else f"{begins}{number:04d}" + (f".{self.generation}" if self.generation else "")

    def pieces(self) -> "list[Unit]":
        """Return a unit for each of the requests, or the unit itself where there is only one."""
        if len(self.requests) == 1:
            return [self]
        course = self.course
        return [
            replace(self, requests=(placed,), row=placed.row, course=course and course.of(placed.row)) for placed in self.requests
        ]

    def next_pass(self) -> Iterator[tuple[Placed, Sequence[int]]]:
        """Yield the requests to render now, drafts as requests of fewer steps, each with its candidates' indices.

        For a stage, the requests are as their rows make them.
        """
        if self.course is None:
            yield from ((placed, self.span or range(placed.request.candidates)) for placed in self.requests)
            return
        if (staged := self.course.staged) is not None:
            yield from ((placed, kept) for placed in self.requests if (kept := staged.kept.get(placed.row)))
            return
        turns = self.course.turns
        for placed in self.requests:
            if turn := turns.get(placed.row):
                draft = None if turn.draft is None else self.course.drafts[turn.draft]
                yield replace(placed, request=as_draft(placed.request, draft)) if draft else placed, turn.candidates

    @property
    def candidates(self) -> int:
        return len(self.span) if self.span else sum(placed.request.candidates for placed in self.requests)

    def slices(self, batch: int) -> "list[Unit]":
        """Cut the candidates of a unit's only request into slices; return none where the unit is no larger than one slice.

        A slice is a unit of its own: rendered, scored and durable by itself. `joined_slices` makes the whole unit's part of the
        parts of its slices. A request that passes more than once has no slices, since its drafts are chosen from all of its
        candidates; each of its passes is as large as a slice at most, and durable by itself (`scoring.durable_passes`).

        Args:
            batch: Candidates a denoising batch.
        """
        if len(self.requests) != 1 or self.course or self.span:
            return []
        (placed,) = self.requests
        size, candidates = at_once(placed.request, batch), placed.request.candidates
        starts = range(0, candidates, size) if candidates > size else range(0)
        return [replace(self, row=placed.row, span=range(start, min(start + size, candidates))) for start in starts]


def sample_key(shard: int, row: int, candidate: int | None) -> str:
    """Return the key of a candidate in the dataset; without `candidate`, that of a request as a whole."""
    return f"{shard:06d}-{row:05d}" + (f"-{candidate:04d}" if candidate is not None else "")


def parse_key(key: str) -> tuple[int, int, int]:
    """Return shard, row and candidate of a candidate's key; raise ValueError for any other text."""
    found = parse(key)
    if found is None or found[2] is None:
        raise ValueError(f"{shown(key)}: not a key of a candidate")
    return found[0], found[1], found[2]


def bucket_of(request: Request) -> Hashable:
    """Return the values that requests have to share to go through one call of a diffusers pipeline."""
    controls = tuple((c.type, c.scale, c.start, c.end) for c in request.controls)
    loras = tuple((lora.name, lora.scale) for lora in request.loras)
    shape = (request.mode, request.width, request.height, request.steps, request.scheduler)
    scales = (request.guidance_scale, request.guidance_rescale, *(getattr(request, name) for name in FURTHER))
    boxes = (request.gligen_boxes,) if request.gligen_boxes else ()
    return (*shape, *scales, request.strength, controls, loras, *_faces(request), *boxes)


def kind_of(request: Request) -> Hashable:
    """Return the values that requests have to share for one denoising batch of the slot engine, and so for one unit."""
    loras = tuple((lora.name, lora.scale) for lora in request.loras) if request.loras else ()
    controls = tuple(control.type for control in request.controls) if request.controls else ()
    return (request.width, request.height, controls, loras, *_faces(request))


def _faces(request: Request) -> tuple[str, ...]:
    """Return the types of a request's embeddings of faces, whose adapters bring LoRAs, which adapt a whole batch."""
    return tuple({one.type: None for one in request.references if one.embedding}) if request.references else ()


def work(request: Request) -> int:
    """Return about how often the denoiser is evaluated for one candidate, the same in every family, as units are cut by it.

    Parts that a run of an earlier promptmill has left are found by the cut.
    """
    steps = int(request.steps * request.strength) if request.strength is not None else request.steps
    guided, held = request.guidance_scale > 1 or request.is_led, request.image_guidance_scale
    each = 2 if held is None else 3 if held >= 1 else 1
    prior = (request.prior_steps or 0) * (2 if (request.prior_guidance_scale or 0) > 1 else 1)
    return max(1, steps) * (each if guided else 1) + prior


def at_once(request: Request, batch: int) -> int:
    """Return how many candidates of a request one call of a generator renders at most, by their work and their pixels.

    Args:
        request: The request.
        batch: Candidates a denoising batch. The work is whole batches; only pixels, which take memory, cut a batch short.
    """
    most = batch * max(1, SLICE_UNITS * UNIT_EVALUATIONS // work(request))
    return max(1, min(max(most, SLICE_KEEPS * request.keep), UNIT_PIXELS // (request.width * request.height)))


def slices_of(request: Request, batch: int, drafts: Sequence[Draft], stages: bool = False) -> int:
    """Return how many units a request makes that fills one by itself: 1, or the number of its slices."""
    if stages or request.growing or applied(drafts, request.candidates):
        return 1
    return -(-request.candidates // at_once(request, batch))


def is_long(request: Request, batch: int, drafts: Sequence[Draft]) -> bool:
    """Return whether a request may render more candidates, drafts and finals, than one call of a generator does."""
    return decodes(request, drafts) > at_once(request, batch)


def price(request: Request, drafts: Sequence[Draft], counting: Counting = STABLE_DIFFUSION) -> int:
    """Return how often the denoiser is evaluated for a request's candidates, drafts included; the most where they grow.

    Args:
        request: The request.
        drafts: The cascade.
        counting: What the model decides of the number.
    """
    return _summed(request, drafts, partial(evaluations, counting=counting))


def cached_price(request: Request, drafts: Sequence[Draft], cache: StepCache, counting: Counting = STABLE_DIFFUSION) -> int:
    """Return how many of the evaluations of `price` a step cache answers."""
    return _summed(request, drafts, partial(cached_evaluations, cache=cache, counting=counting))


def _summed(request: Request, drafts: Sequence[Draft], of_one: Callable[[Request], int]) -> int:
    if not drafts:
        return request.candidates * of_one(request)
    return sum(living * of_one(each) for living, each in _passes(request, drafts))


def decodes(request: Request, drafts: Sequence[Draft]) -> int:
    """Return how many images are decoded and scored for a request, drafts and finals; at most, where its candidates grow."""
    return sum(living for living, _ in _passes(request, drafts))


def _passes(request: Request, drafts: Sequence[Draft]) -> Iterator[tuple[int, Request]]:
    """Yield how many candidates go through each pass, and the request of the pass."""
    for start in range(0, request.candidates, request.at_a_time):
        living = min(request.at_a_time, request.candidates - start)
        for draft in [drafts[number] for number in applied(drafts, living)]:
            yield living, as_draft(request, draft)
            living = draft.keep
        yield living, request


def cut(
    shard: int, requests: Iterable[Placed], batch: int, drafts: Sequence[Draft] = (), stages: Sequence[StageOrCaptions] = ()
) -> Iterator[Unit]:
    """Yield the units of a shard: requests of one kind in their order, about as much work in each.

    Args:
        shard: The shard's number.
        requests: In the order of their rows.
        batch: Candidates a denoising batch.
        drafts: The cascade that they go through.
        stages: The stages that their kept images go through.
    """
    kinds: dict[Hashable, list[Placed]] = {}
    for placed in requests:
        kinds.setdefault(kind_of(placed.request), []).append(placed)
    number = 0
    for kind in kinds.values():
        for some in _filled(kind, UNIT_EVALUATIONS * batch, drafts, stages):
            yield Unit(shard, number, some)
            number += 1


def _filled(
    kind: list[Placed], wanted: int, drafts: Sequence[Draft], stages: Sequence[StageOrCaptions]
) -> Iterator[tuple[Placed, ...]]:
    some: list[Placed] = []
    done, pixels = 0.0, 0
    for placed in kind:
        request = placed.request
        # Divide the unit's size by its passes, so that each pass is as large as the one pass of a plain unit.
        more = _summed(request, drafts, work) / (1 + len(applied(drafts, request.at_a_time)))
        # All images of a stage are in memory together, as all candidates of a pass are.
        size = max(request.candidates * request.width * request.height, request.keep * math.prod(size_after(request, stages)))
        if some and (done + more > wanted or pixels + size > UNIT_PIXELS):
            yield tuple(some)
            some, done, pixels = [], 0.0, 0
        some.append(placed)
        done, pixels = done + more, pixels + size
    yield tuple(some)


def candidate_seed(job_seed: int, request: Request, candidate: int) -> int:
    """Return the 32-bit seed of a candidate; it depends on nothing but these arguments, so more candidates can be asked for later.

    A row's own seed counts up from candidate 0; otherwise the seed is a hash of the job's seed, the request's id and the candidate.
    Candidates that vary one noise all have the seed of candidate 0.
    """
    if request.variation_seed is not None:
        candidate = 0
    if request.seed is not None:
        return (request.seed + candidate) % 2**32
    return int.from_bytes(hashlib.sha256(f"{job_seed}\n{candidate}\n{request.id}".encode()).digest()[:4], "big")


def variation_of(request: Request, candidate: int) -> tuple[int, float] | None:
    """Return the seed of the noise that varies a candidate's, and its share; None where a request asks for no variations."""
    if request.variation_seed is None or request.variation_strength is None:
        return None
    return (request.variation_seed + candidate) % 2**32, request.variation_strength
