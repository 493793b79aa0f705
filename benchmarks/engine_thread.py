"""Measures the work of the engine's thread beside denoising, in a mixed manifest with images, on the embedded family.

    python -m benchmarks.engine_thread

Units come from threads, as a generator gets them: their images are read there. The engine's thread runs the models' batches and, in
between, diffusers' pipelines. Their time is told apart by where a pipeline stands: before its first call of the denoiser (a group
starts: latents, timesteps, embeddings), between such calls (steps: schedulers, guidance), and behind the last one (images). What is
left is the engine's own: queues, groups, results; and waiting for units.
"""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import click
import torch
from greenlet import greenlet

from benchmarks.engine import IMAGES, mixed_requests, model_of
from promptmill.manifests.images import Roots
from promptmill.pipelines.rendering import engine
from promptmill.pipelines.rendering.loaded_model import LoadedModel
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.units import Placed, Unit

IN_FLIGHT = 2  # units that a generator has at a time
STAGES = ("models", "steps", "starting", "images", "the engine", "waiting")
STEPPING = ("models", "steps")


class Timed(Slots):
    """Renders as `Slots` does, and adds up the seconds of each stage in `spent`."""

    def __init__(self, model: LoadedModel, batch: int):
        super().__init__(model, batch)
        self.spent: Counter[str] = Counter()
        self._inside = 0.0  # seconds of models that a pipeline called by itself since it was resumed
        for joined in (self.denoiser, self.decoder, *self.controlnets, *(text.joined for text in self.texts)):
            joined.run = self._timed(joined.run)
        assert model.vae is not None
        model.vae.encode = self._timed(model.vae.encode)

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return run(*args, **kwargs)
            finally:
                spent = time.perf_counter() - started
                self.spent["models"] += spent
                self._inside += spent

        return timed

    def _go_on(self, caller: greenlet, resume: Callable[[], Any]) -> None:
        group = self._groups[caller]
        stage = "images" if group.decoding else "steps" if group.evaluations else "starting"
        started, self._inside = time.perf_counter(), 0.0
        super()._go_on(caller, resume)
        self.spent[stage] += time.perf_counter() - started - self._inside

    def step(self) -> None:
        """Run one batch and resume its pipelines, as `Slots.step`; what is no pipeline's and no model's time is the engine's."""
        before = sum(self.spent.values())
        started = time.perf_counter()
        super().step()
        self.spent["the engine"] += time.perf_counter() - started - (sum(self.spent.values()) - before)


def measure(requests: int, batch: int, threads: int, a_unit: int) -> tuple[Counter[str], int]:
    """Render a mixed manifest; return the seconds of the engine's thread by stage, and the denoiser's batches."""
    placed = [Placed(row, request) for row, request in enumerate(mixed_requests(requests))]
    units = [Unit(0, number, tuple(placed[at : at + a_unit])) for number, at in enumerate(range(0, len(placed), a_unit))]
    with patch.object(engine, "Slots", Timed):
        one = engine.Engine(model_of(batch, threads), 0, Roots((str(IMAGES),)), torch.device("cpu"))
    path = one.path
    assert isinstance(path, Timed)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        one.render(units[0])  # warm
        path.spent.clear()
        path.denoiser.calls = 0
        started = time.perf_counter()
        for rendered in pool.map(one.render, units):
            assert not any(outcome.failure for outcome in rendered.outcomes)
        wall = time.perf_counter() - started
    path.spent["waiting"] = wall - sum(path.spent.values())
    batches = path.denoiser.calls
    one.close()
    return path.spent, batches


@click.command()
@click.option("--requests", default=600, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--unit", default=32, show_default=True)
def main(requests: int, batch: int, threads: int, unit: int) -> None:
    """Print the share of each stage in the engine's thread."""
    spent, batches = measure(requests, batch, threads, unit)
    wall = sum(spent.values())
    click.echo("| stage | seconds | share |\n|---|---:|---:|")
    for stage in STAGES:
        click.echo(f"| {stage} | {spent[stage]:.2f} | {100 * spent[stage] / wall:.1f}% |")
    beside = sum(spent[stage] for stage in STAGES if stage not in STEPPING)
    click.echo(f"\nbeside models and steps: {100 * beside / wall:.1f}% of {wall:.1f} s")
    click.echo(
        f"the host's own work: {1000 * (wall - spent['models'] - spent['waiting']) / batches:.2f} ms a batch of the denoiser"
    )


if __name__ == "__main__":
    main()
