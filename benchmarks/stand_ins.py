"""Replaces Ray and the models by stand-ins, so that commands that render run in this process at no cost."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from promptmill.actors.assembler import assemble_shard, join_unit
from promptmill.actors.pool_sizes import Sizes
from promptmill.jobs.running.run import Run
from promptmill.pipelines.work.results import Candidate, Outcome, Rendered
from promptmill.pipelines.work.units import Unit

SIZES = Sizes(1, 1.0, 0.0, 1, 0.2, 0.0, 0.2)
SIDE = 16  # of an image that a stand-in renders


class _Here:
    """A task of Ray that runs in this process, where it is called.

    Args:
        task: Ray's.
    """

    def __init__(self, task: Any):
        self._function = task._function

    def options(self, **options: Any) -> "_Here":
        return self

    def remote(self, *arguments: Any) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(self._called(*arguments))

    async def _called(self, *arguments: Any) -> Any:
        return self._function(*arguments)


class _Engine:
    """An engine that renders each candidate as the same small image."""

    def __init__(self, *arguments: Any):
        pass

    def render(self, unit: Unit) -> Rendered:
        image = Candidate(0, 0, np.zeros((SIDE, SIDE, 3), np.uint8), 1)
        return Rendered(tuple(Outcome(placed.row, (image,)) for placed in unit.requests))


@contextlib.contextmanager
def no_rendering(hardware: Mapping[str, str]) -> Iterator[None]:
    """Have `run`, `regenerate` and `verify --repair` of this process start no Ray and load no model.

    A run settles every unit as one that died, and writes its part and assembles its shard for real.

    Args:
        hardware: The kind of hardware that this machine is said to be of.
    """

    async def render(run: Run, nodes: list[dict[str, float]]) -> None:
        run.sizes = SIZES
        run.told.ready(SIZES)
        for unit in run.units():
            run.generator_loaded(dict(hardware))
            await run.settle(await run.convict(unit, ["died"]))
        await asyncio.gather(*run._assembling)
        if run._broken:
            raise run._broken

    # These two import torch, which each process of a case would pay for.
    light = {
        "promptmill.pipelines.rendering.hardware": SimpleNamespace(hardware_kind=lambda threads: dict(hardware)),
        "promptmill.pipelines.rendering.engine": SimpleNamespace(Engine=_Engine),
    }
    with (
        patch("promptmill.jobs.running.run.cluster", lambda *_, **__: contextlib.nullcontext([{"CPU": 2.0}])),
        patch("promptmill.jobs.cli.verify.ready", lambda *_: contextlib.nullcontext()),
        patch.object(Run, "render", render),
        patch("promptmill.jobs.running.run.assemble_shard", _Here(assemble_shard)),
        patch("promptmill.jobs.running.run.join_unit", _Here(join_unit)),
        patch.dict(sys.modules, light),
    ):
        yield
