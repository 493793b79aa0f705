"""Counts, on a CPU, the work of a step beside its model: reads of tensors as numbers, copies, and operators.

    python -m benchmarks.waits

A number that is read of a tensor on a GPU (`.item()`, `float(tensor)`, `if tensor`, a tensor as an index of a list) waits for
all that the GPU has been given before. An operator is a kernel for the host to launch, or only another look at a tensor;
operators inside of models are left out. Counted are those of eight steps beyond those of four, divided by four, with a tiny
Stable Diffusion; and how often a scheduler is made. Schedulers keep timesteps on the device, so that what they read of these
waits; what they read of tensors on the host does not. So the counts are the most that there can be.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from promptmill.configs.model import Model
from promptmill.configs.schedulers import SCHEDULERS
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering.loaded_model import LoadedModel
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.rendering.preparing import Conditioning, jobs_of, prepare_request
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.units import Placed
from tests.pipelines import tiny
from tests.pipelines.plain import JOB_SEED, MODES, paint, request

READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")  # each ends in a number on the host
COPIES = ("aten::_to_copy", "aten::copy_")
SHORT, LONG = 4, 8  # steps
SHOWN = ("txt2img", "img2img", "inpaint")


class Reading(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.in_model = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.in_model:
            self.counts[function.name().partition(".")[0]] += 1
        return function(*args, **(kwargs or {}))


def counted(path: Slots, folder: Path, mode: str, scheduler: str, steps: int) -> np.ndarray:
    """Return the numbers of reads, of copies and of operators while one request is rendered, (3,) int64."""
    placed = Placed(0, request(scheduler=scheduler, steps=steps, candidates=1, **{"mode": mode, **MODES[mode]}))
    conditioning = prepare_request(placed, Roots((str(folder),)))
    assert isinstance(conditioning, Conditioning)
    run = path.denoiser.run

    def unseen(**given: Any) -> Any:
        seen.in_model = True
        try:
            return run(**given)
        finally:
            seen.in_model = False

    with torch.no_grad(), Reading() as seen, patch.object(path.denoiser, "run", unseen):
        path.run(jobs_of(placed, conditioning, JOB_SEED))
    return np.array([*(sum(seen.counts[name] for name in some) for some in (READS, COPIES)), seen.counts.total()])


@click.command()
def main() -> None:
    """Count the reads of a step."""
    made: list[str] = []
    build = LoadedModel._made_scheduler

    def made_once(model: LoadedModel, name: str) -> Any:
        made.append(name)
        return build(model, name)

    LoadedModel._made_scheduler = made_once  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paint(folder)
        path = Slots(load_model(Model(base=str(tiny.stable_diffusion(folder / "sd")), batch=2)), 2)
        click.echo(f"| scheduler | {' | '.join(SHOWN)} |\n|---|{'---:|' * len(SHOWN)}")
        click.echo(f"| | {' | '.join(['reads, copies, operators'] * len(SHOWN))} |")
        for mode in SHOWN:  # texts are encoded before anything is counted
            counted(path, folder, mode, "model", SHORT)
        for scheduler in (*SCHEDULERS, "model"):
            path.model.scheduler(scheduler)  # made before anything is counted
            few, many = ([counted(path, folder, mode, scheduler, steps) for mode in SHOWN] for steps in (SHORT, LONG))
            each = [(more - less) / (LONG - SHORT) for less, more in zip(few, many, strict=True)]
            click.echo(f"| `{scheduler}` | {' | '.join(', '.join(f'{number:g}' for number in one) for one in each)} |")
        path.close()
    groups = 2 * len(SHOWN) * (len(SCHEDULERS) + 1) + len(SHOWN)
    click.echo(f"\n{len(made)} schedulers were made for {groups} groups")


if __name__ == "__main__":
    main()
