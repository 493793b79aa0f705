"""Counts, on a CPU, the reads of tensors as numbers that would wait for a GPU at every step, by scheduler and mode.

    python -m benchmarks.waits

A number that is read of a tensor on a GPU (`.item()`, `float(tensor)`, `if tensor`, a tensor as an index of a list) waits for all
that the GPU has been given before. Counted are such reads of eight steps beyond those of four, divided by four, with a tiny Stable
Diffusion; and how often a scheduler is made. Schedulers keep timesteps on the device, so that what they read of these waits; what
they read of tensors on the host does not. So the counts are the most that there can be.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import click
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
SHORT, LONG = 4, 8  # steps
SHOWN = ("txt2img", "img2img", "inpaint")


class Reading(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.name().partition(".")[0]] += 1
        return function(*args, **(kwargs or {}))


def reads(path: Slots, folder: Path, mode: str, scheduler: str, steps: int) -> int:
    """Return how many numbers are read of tensors while one request is rendered."""
    placed = Placed(0, request(scheduler=scheduler, steps=steps, candidates=1, **{"mode": mode, **MODES[mode]}))
    conditioning = prepare_request(placed, Roots((str(folder),)))
    assert isinstance(conditioning, Conditioning)
    with torch.no_grad(), Reading() as seen:
        path.run(jobs_of(placed, conditioning, JOB_SEED))
    return sum(seen.counts[name] for name in READS)


@click.command()
def main() -> None:
    """Count the reads of a step."""
    made: list[str] = []
    build = LoadedModel._made_scheduler

    def counted(model: LoadedModel, name: str) -> Any:
        made.append(name)
        return build(model, name)

    LoadedModel._made_scheduler = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paint(folder)
        path = Slots(load_model(Model(base=str(tiny.stable_diffusion(folder / "sd")), batch=2)), 2)
        click.echo(f"| scheduler | {' | '.join(SHOWN)} |\n|---|{'---:|' * len(SHOWN)}")
        for scheduler in (*SCHEDULERS, "model"):
            path.model.scheduler(scheduler)  # made before anything is counted
            few, many = ([reads(path, folder, mode, scheduler, steps) for mode in SHOWN] for steps in (SHORT, LONG))
            each = [(more - less) / (LONG - SHORT) for less, more in zip(few, many, strict=True)]
            click.echo(f"| `{scheduler}` | {' | '.join(f'{one:g}' for one in each)} |")
        path.close()
    groups = 2 * len(SHOWN) * (len(SCHEDULERS) + 1)
    click.echo(f"\nreads a step; {len(made)} schedulers were made for {groups} groups")


if __name__ == "__main__":
    main()
