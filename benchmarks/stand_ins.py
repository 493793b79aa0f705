"""Replaces Ray and the models by stand-ins, so that commands that render run in this process at no cost."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from promptmill.actors.flow.actor_slots import DiedError
from promptmill.actors.flow.in_process_pools import sizes_here
from promptmill.jobs.running.rendering import Run
from promptmill.jobs.running.sites import Here, Site
from promptmill.pipelines.work.results import Candidate, Outcome, Rendered
from promptmill.pipelines.work.units import Unit

SIDE = 16  # of an image that a stand-in renders


class _Engine:
    """Imitates the engine: renders each candidate as the same small image."""

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def render(self, unit: Unit) -> Rendered:
        image = Candidate(0, 0, np.zeros((SIDE, SIDE, 3), np.uint8), 1)
        return Rendered(tuple(Outcome(placed.row, (image,)) for placed in unit.requests))


@contextlib.contextmanager
def no_rendering(hardware: Mapping[str, str]) -> Iterator[None]:
    """Let `run`, `regenerate` and `verify --repair` of this process start no Ray and load no model.

    A run settles every unit as one that died, and writes its part and assembles its shard for real.

    Args:
        hardware: The kind of hardware that this machine is said to be of.
    """

    async def render(run: Run, site: Site) -> None:
        run.told.ready(site.sizes)
        run.workers = site.workers(run.recipe, run.generator_loaded, run.check_hardware)
        for unit in run.units():
            run.generator_loaded(dict(hardware))
            await run.settle(await run.convict(unit, [DiedError("it died")]))
        await asyncio.gather(*run._assembling)
        if run._broken:
            raise run._broken

    def here(*arguments: Any) -> contextlib.AbstractContextManager[Site]:
        return contextlib.nullcontext(Here(sizes_here(1)))

    # These two import torch, which each process of a case would pay for.
    light = {
        "promptmill.pipelines.rendering.hardware": SimpleNamespace(hardware_kind=lambda threads: dict(hardware)),
        "promptmill.pipelines.rendering.engine": SimpleNamespace(Engine=_Engine),
    }
    with (
        patch("promptmill.jobs.running.run.site_of", here),
        patch("promptmill.jobs.cli.verify.ready", lambda *_: contextlib.nullcontext()),
        patch.object(Run, "render", render),
        patch.dict(sys.modules, light),
    ):
        yield
