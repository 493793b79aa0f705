"""The sample of a manifest: drawn by a hash, so that the same manifest gives the same, and a larger sample holds a smaller one."""

import hashlib
import heapq
from dataclasses import replace

from jobs.plan import PlanError
from jobs.planning import Sources
from manifests.checking import check_rows
from manifests.requests import Request
from manifests.sources import ManifestError
from pipelines.units import Placed


def draw(sources: Sources, count: int) -> tuple[list[Placed], int]:
    """Draw requests with two candidates or more, one pass over the manifest in flat memory; their images are not looked at yet.

    Returns:
        The sample in the order of its hashes, and how many such requests there are.

    Raises:
        PlanError: The manifest cannot be read, or there is no such request.
    """
    chosen: list[tuple[int, int, Placed]] = []
    there = 0
    try:
        for checked in check_rows(sources.files, sources.rules):
            if checked.request is None or checked.request.at_a_time < 2:
                continue
            there += 1
            # Negated, since the heap's first is the one to give way; rows with one id differ by their numbers.
            entry = (-_hash(checked.request.id), -checked.number, Placed(0, _one_round(checked.request), file=checked.file))
            if len(chosen) < count:
                heapq.heappush(chosen, entry)
            elif entry > chosen[0]:
                heapq.heapreplace(chosen, entry)
    except ManifestError as error:
        raise PlanError([str(error)]) from None
    if not there:
        raise PlanError(["no row makes a request of two candidates or more, so there is nothing to rank; set defaults.candidates"])
    return [placed for _, _, placed in sorted(chosen, reverse=True)], there


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"calibration\n{id}".encode()).digest()[:8], "big")


def _one_round(request: Request) -> Request:
    """The candidates that go through a cascade together: of those that grow, a round."""
    return replace(request, candidates=request.at_a_time, keep=min(request.keep, request.at_a_time), growing=None)
