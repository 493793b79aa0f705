"""Draws the sample of a manifest by a hash: the same manifest gives the same sample, and a larger sample holds a smaller one."""

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from promptmill.configs.parameters import Defaults, Growing
from promptmill.jobs.planning.making import Sources
from promptmill.jobs.planning.plan import PlanError
from promptmill.manifests.checking import check_images, check_rows, look
from promptmill.manifests.requests import Request
from promptmill.manifests.sources import ManifestError
from promptmill.pipelines.work.units import Placed

MAX_PROBLEMS = 5  # lines


@dataclass(frozen=True)
class Shape:
    """Holds the values of a request that a cascade has to fit.

    Attributes:
        candidates: Candidates that go through the cascade together; of a request that grows, those of one round.
    """

    candidates: int
    keep: int
    steps: int
    scheduler: str
    strength: float | None = None


@dataclass(frozen=True)
class Sample:
    """Holds requests drawn from a manifest.

    Attributes:
        requests: Requests with two candidates or more, in the order of their hashes.
        rows: Number of rows that make such requests, in all the manifest.
        shapes: Shapes of all such requests of the manifest, and of the defaults: a config has to fit both.
        bad: Number of rows that make no request.
        broken: By id, the problem of images that keep a request from being rendered.
    """

    requests: Sequence[Placed]
    rows: int
    shapes: Sequence[Shape]
    bad: int
    broken: Mapping[str, str]


def draw(sources: Sources, count: int) -> Sample:
    """Draw up to `count` requests, in one pass over the manifest and in constant memory.

    Raises:
        PlanError: The manifest cannot be read, or no request has two candidates or more.
    """
    chosen: list[tuple[int, int, Placed]] = []
    shapes: dict[Shape, float | None] = {}
    rows, bad, lines = 0, 0, list[str]()
    try:
        for checked in check_rows(sources.files, sources.rules):
            if checked.request is None:
                bad += 1
                lines += checked.lines()[: MAX_PROBLEMS - len(lines)]
            elif checked.request.at_a_time > 1:
                rows += 1
                request = _one_round(checked.request)
                _note(shapes, request)
                # Negated, since the heap's first is the one to give way.
                entry = (-_hash(request.id), -checked.number, Placed(0, request, file=checked.file))
                if len(chosen) < count:
                    heapq.heappush(chosen, entry)
                elif entry > chosen[0]:
                    heapq.heapreplace(chosen, entry)
    except ManifestError as error:
        raise PlanError([str(error)]) from None
    if not rows:
        raise PlanError([*lines, "no row makes a request of two candidates or more, so there is nothing to rank"])
    found, broken = _looked_at(sources, [placed for _, _, placed in sorted(chosen, reverse=True)])
    all_shapes = [replace(shape, strength=strength) for shape, strength in shapes.items()]
    return Sample(found, rows, [*all_shapes, _of_defaults(sources.config.defaults)], bad, broken)


def _note(shapes: dict[Shape, float | None], request: Request) -> None:
    """Record the shape of a request; of requests that differ in their strength alone, the weakest is the hardest to fit."""
    shape = Shape(request.candidates, request.keep, request.steps, request.scheduler)
    known = shapes.get(shape)
    shapes[shape] = request.strength if known is None else min(known, request.strength or 1.0)


def _of_defaults(defaults: Defaults) -> Shape:
    candidates = defaults.candidates.start if isinstance(defaults.candidates, Growing) else defaults.candidates
    return Shape(candidates, min(defaults.keep, candidates), defaults.steps, defaults.scheduler)


def _looked_at(sources: Sources, drawn: Iterable[Placed]) -> tuple[list[Placed], dict[str, str]]:
    """Return the requests whose images can be used (the first one of each id), and the problems of the others by id."""
    found: dict[str, Placed] = {}
    broken: dict[str, str] = {}
    for placed in drawn:
        seen = check_images(placed.request, partial(look, file=placed.file, roots=sources.roots))
        if seen.problems:
            broken[placed.request.id] = seen.problems[0]
        else:
            found.setdefault(placed.request.id, replace(placed, images=seen.sha256))
    return list(found.values()), broken


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"calibration\n{id}".encode()).digest()[:8], "big")


def _one_round(request: Request) -> Request:
    """Return a request with the candidates that go through a cascade together: of one that grows, those of one round."""
    return replace(request, candidates=request.at_a_time, keep=min(request.keep, request.at_a_time), growing=None)
