"""Units: whole requests of one shard that can share GPU batches. Cut by a plan, rendered and made durable as one piece."""

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from manifests.requests import Request

UNIT_BATCHES = 2  # GPU batches a unit aims at; the bytes do not depend on it


@dataclass(frozen=True)
class Placed:
    """A request at its place.

    Attributes:
        row: Counted from 0 in its shard.
        images: SHA-256 of the files of its images as the plan saw them, by column (`init_image`, `mask_image`,
            `controls.0.image`, …); empty where images are only looked at when they are used.
    """

    row: int
    request: Request
    images: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """Requests of one bucket and one shard, `number` counted from 0 in the shard."""

    shard: int
    number: int
    requests: tuple[Placed, ...]

    @property
    def name(self) -> str:
        return f"{self.shard:06d}-{self.number:05d}"

    @property
    def candidates(self) -> int:
        return sum(placed.request.candidates for placed in self.requests)


def sample_key(shard: int, row: int, candidate: int | None) -> str:
    """The key of a candidate in the dataset; that of a request as a whole without `candidate`."""
    return f"{shard:06d}-{row:05d}" + (f"-{candidate:04d}" if candidate is not None else "")


def parse_key(key: str) -> tuple[int, int, int]:
    """Shard, row and candidate of a key. Raises ValueError where it is none."""
    shard, row, candidate = key.split("-")
    return int(shard), int(row), int(candidate)


def bucket_of(request: Request) -> Hashable:
    """What requests have to have in common to share a batch of diffusers' own pipelines."""
    controls = tuple((c.type, c.scale, c.start, c.end) for c in request.controls)
    loras = tuple((lora.name, lora.scale) for lora in request.loras)
    shape = (request.mode, request.width, request.height, request.steps, request.scheduler)
    return (*shape, request.guidance_scale, request.strength, controls, loras)


def cut(shard: int, requests: Iterable[Placed], batch: int) -> Iterator[Unit]:
    """The units of a shard: each bucket's requests in their order, some `UNIT_BATCHES` batches of candidates a unit.

    Args:
        shard: Its number.
        requests: In the order of their rows.
        batch: Candidates a denoising batch.
    """
    buckets: dict[Hashable, list[Placed]] = {}
    for placed in requests:
        buckets.setdefault(bucket_of(placed.request), []).append(placed)
    number = 0
    for bucket in buckets.values():
        for some in _filled(bucket, UNIT_BATCHES * batch):
            yield Unit(shard, number, some)
            number += 1


def _filled(bucket: list[Placed], wanted: int) -> Iterator[tuple[Placed, ...]]:
    some: list[Placed] = []
    for placed in bucket:
        if some and sum(p.request.candidates for p in some) + placed.request.candidates > wanted:
            yield tuple(some)
            some = []
        some.append(placed)
    yield tuple(some)


def candidate_seed(job_seed: int, request: Request, candidate: int) -> int:
    """The 32-bit seed of a candidate; it depends on nothing but these, so more candidates can be asked for later.

    A row's own seed counts up from candidate 0; otherwise it is a hash of the job's seed, the request's id and the candidate.
    """
    if request.seed is not None:
        return (request.seed + candidate) % 2**32
    return int.from_bytes(hashlib.sha256(f"{job_seed}\n{candidate}\n{request.id}".encode()).digest()[:4], "big")
