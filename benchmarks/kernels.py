"""Measures every switch of `model.kernels`, and the dtype, by itself: what it gains here and what it does to the pixels.

    python -m benchmarks.kernels                  # the embedded family on this machine, some minutes

Each is compared with the same model without it, in the same run, repeats interleaved, medians. What a machine cannot do is said.
`benchmarks.gpu_images` does the same at real sizes on a GPU, one switch upon the other.
"""

import statistics

import click
import numpy as np

from benchmarks.engine import Contender, as_jobs, model_of, request
from promptmill.configs.model import Kernels, Model
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.errors import ModelError

SWITCHES = {
    "none": {},
    "attention: plain": {"kernels": Kernels(attention="plain")},
    "channels_last": {"kernels": Kernels(channels_last=True)},
    "compile": {"kernels": Kernels(compile=True)},
    "fp8": {"kernels": Kernels(fp8=True)},
    "dtype: bfloat16": {"dtype": "bfloat16"},
}


@click.command()
@click.option("--requests", default=32, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(requests: int, repeats: int, batch: int, threads: int) -> None:
    """Measure the kernels."""
    jobs = as_jobs([request(i) for i in range(requests)])
    base = model_of(batch, threads)
    contenders: dict[str, Contender] = {}
    for name, values in SWITCHES.items():
        try:
            contenders[name] = _contender(base.model_copy(update=values), batch)
        except ModelError as error:
            click.echo(f"{name}: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    images = {}
    for contender in contenders.values():
        contender.render(jobs[:batch])  # warm, and compiled
    for _ in range(repeats):
        for name, contender in contenders.items():
            spent, made = contender.render(jobs)
            seconds[name].append(spent)
            images[name] = np.stack([made[job.placed.row, job.index].pixels for job in jobs]).astype(int)  # type: ignore[arg-type]
    click.echo(f"{requests} requests, 20 steps, batch {batch}, {threads} threads, medians of {repeats}")
    click.echo("| switch | times as fast | values that differ | levels: mean, most |")
    click.echo("|---|---:|---:|---:|")
    usual = statistics.median(seconds["none"])
    for name in contenders:
        apart = np.abs(images[name] - images["none"])
        gain = usual / statistics.median(seconds[name])
        click.echo(f"| {name} | {gain:.2f} | {100 * (apart > 0).mean():.3f}% | {apart.mean():.4f}, {apart.max()} |")


def _contender(model: Model, batch: int) -> Contender:
    return Contender(model, lambda loaded, text: Slots(loaded, text, batch))


if __name__ == "__main__":
    main()
