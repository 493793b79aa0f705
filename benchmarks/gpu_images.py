"""Measures the engine on a GPU at real sizes, against plain diffusers in the same run: SDXL at 1024², Stable Diffusion 1.5 at 512².

    python -m benchmarks.gpu_images                  # both, on a GPU; builds the models with random weights first (8 GB on disk)
    python -m benchmarks.gpu_images --model sdxl     # one of them
    python -m benchmarks.gpu_images --tiny           # every step of it on tiny models and a CPU: shows that it runs

20 Euler steps, guidance 8, bf16. Random weights cost the time of trained ones. For each model: the batch at which plain diffusers
is fastest; images a second there of plain diffusers (as it is, and compiled) and of the slot engine with each switch
of `model.kernels` added to those before; each as a share of the matrix rate measured here; what each switch does to the pixels;
whether the engine's bits are diffusers' and independent of companions; and where the time goes, by the profiler.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import random_weights
from benchmarks.engine import Contender, request
from promptmill.configs.model import Kernels, Model
from promptmill.manifests.requests import Request
from promptmill.pipelines.rendering.loaded_model import LoadedModel
from promptmill.pipelines.rendering.loading import device_here, load_model
from promptmill.pipelines.rendering.preparing import Conditioning, Job, jobs_of
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.errors import ModelError, is_out_of_memory
from promptmill.pipelines.work.units import Placed
from tests.pipelines import tiny as tiny_models

SIDES = {"sdxl": 1024, "sd15": 512}
STEPS, GUIDANCE = 20, 8.0
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SWITCHES: dict[str, Kernels] = {
    "slots": Kernels(),
    "+ channels_last": Kernels(channels_last=True),
    "+ compile": Kernels(channels_last=True, compile=True),
    "+ fp8": Kernels(channels_last=True, compile=True, fp8=True),
}
AIMS = {"sdxl": "to aim for on one H200: 2.0 images/s in bf16 with compilation, 2.4 with FP8"}


def jobs(name: str, side: int, number: int) -> list[Job]:
    """Return jobs of one square image each, alike but for their seeds."""

    def one(i: int) -> Request:
        return request(i, width=side, height=side, steps=STEPS, guidance_scale=GUIDANCE, scheduler="euler", seed=i)

    return [job for i in range(number) for job in jobs_of(Placed(i, one(i)), Conditioning(), 0)]


def plain(model: LoadedModel, some: list[Job]) -> np.ndarray:
    """Render jobs by diffusers' pipeline as people call it, all in one call; return the images, (B, H, W, 3) in 0 … 1."""
    asked = some[0].request
    pipeline = model.pipeline("txt2img", [], "euler")
    return pipeline(
        prompt=[job.request.prompt for job in some],
        width=asked.width,
        height=asked.height,
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in some],
        output_type="np",
    ).images


def rate(run: Callable[[], object], images: int, repeats: int) -> float:
    """Return images a second, after a run to warm up, the median of some."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.monotonic()
        run()
        seconds.append(time.monotonic() - started)
    return images / float(np.median(seconds))


def best_batch(model: LoadedModel, name: str, side: int, most: int) -> tuple[int, float]:
    """Return the batch at which plain diffusers is fastest, and its images a second."""
    rates: dict[int, float] = {}
    for batch in (size for size in BATCHES if size <= most):
        try:
            rates[batch] = rate(partial(plain, model, jobs(name, side, batch)), batch, 1)
        except torch.OutOfMemoryError:
            break
        click.echo(f"  diffusers, batch {batch}: {rates[batch]:.3f} images/s")
        if rates[batch] < 0.98 * max(rates.values()):
            break
    best = max(rates, key=rates.__getitem__)
    return best, rates[best]


def matrix_rate(device: torch.device, side: int) -> float:
    """Return the floating-point operations a second of one large bf16 matrix product."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def run() -> None:
        for _ in range(10):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    return rate(run, 10 * 2 * side**3, 5)


def operations(model: LoadedModel, side: int) -> float:
    """Return the floating-point operations of one image: its guided steps and its decoding; attention counted in full."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        plain(model, [_short(job) for job in jobs("", side, 1)])
    whole = counter.get_total_flops()
    with torch.no_grad(), counter:
        latents = torch.zeros(1, 4, *(side // model.base.vae_scale_factor,) * 2, device=model.device, dtype=model.base.vae.dtype)
        model.base.vae.decode(latents)
    decoding = counter.get_total_flops()
    return (whole - decoding) * STEPS + decoding


def _short(job: Job) -> Job:
    values = {**vars(job.request), "steps": 1}
    return Job(Placed(0, Request(**values)), job.conditioning, job.index, job.seed)


def profile(contender: Contender, some: list[Job]) -> str:
    """Return where the time of the engine goes, by operator."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    gpu = torch.cuda.is_available()
    with profiled(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        contender.render(some)
    by = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=60)


def measure(name: str, base: Path, side: int, repeats: int, most: int) -> None:
    """Measure one model, and print the figures."""
    device = device_here()
    model = Model(base=str(base), dtype="bfloat16", batch=1)
    loaded = load_model(model, device)
    peak, each = matrix_rate(device, 8192 if device.type == "cuda" else 256), operations(loaded, side)
    click.echo(f"{name}: {side} x {side}, {STEPS} Euler steps, guidance {GUIDANCE:g}, bf16; {each / 1e12:.2f} TFLOP an image;")
    click.echo(f"  a matrix product runs at {peak / 1e12:.1f} TFLOP/s here. {AIMS.get(name, '')}")
    batch, usual = best_batch(loaded, name, side, most)
    some = jobs(name, side, 2 * batch)
    reference = np.concatenate([plain(loaded, some[i : i + batch]) for i in (0, batch)])
    rates = {"diffusers": usual}
    loaded.denoiser.compile_repeated_blocks(fullgraph=True, dynamic=False)  # type: ignore[operator]
    rates["diffusers, blocks compiled"] = rate(partial(plain, loaded, some[:batch]), batch, repeats)
    del loaded
    _line("diffusers", rates, usual, each, peak)
    _line("diffusers, blocks compiled", rates, usual, each, peak)
    first: np.ndarray | None = None
    for switch, kernels in SWITCHES.items():
        try:
            with_it = model.model_copy(update={"batch": batch, "kernels": kernels})
            contender = Contender(with_it, lambda loaded, text: Slots(loaded, text, batch))
            rates[switch] = rate(partial(contender.render, some), len(some), repeats)
        except ModelError as error:
            click.echo(f"  {switch}: {error}")
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            click.echo(f"  {switch}: {str(error).splitlines()[0]}")
            continue
        made = _pixels(contender, some)
        alone = _pixels(contender, some[:1])
        _line(switch, rates, usual, each, peak)
        click.echo(f"    an image rendered alone has the same bits: {bool((made[:1] == alone).all())}")
        if first is None:
            first = made
            same = int((made == np.rint(reference * 255).astype(int)).all((1, 2, 3)).sum())
            click.echo(f"    bit-equal to diffusers at the same batch: {same} of {len(made)} images")
            click.echo(profile(contender, some))
        else:
            different = np.abs(made - first)
            click.echo(f"    values that differ from plain slots: {100 * (different > 0).mean():.2f}%, ", nl=False)
            click.echo(f"by {different.mean():.3f} levels on average, {different.max()} at most")
        del contender


def _pixels(contender: Contender, some: list[Job]) -> np.ndarray:
    _, made = contender.render(some)
    images: list[Any] = [made[job.placed.row, job.index].pixels for job in some]
    side = some[0].request.width
    # Random weights may well make an image of one color, which the engine calls a failure.
    return np.stack([np.zeros((side, side, 3), np.uint8) if image is None else image for image in images]).astype(int)


def _line(name: str, rates: dict[str, float], usual: float, each: float, peak: float) -> None:
    share = 100 * rates[name] * each / peak
    click.echo(f"  {name:28} {rates[name]:7.3f} images/s   {rates[name] / usual:5.2f}x   {share:5.1f}% of the matrix rate")


@click.command()
@click.option("--model", "only", type=click.Choice(list(SIDES)))
@click.option("--repeats", default=3, show_default=True)
@click.option("--tiny", is_flag=True, help="Tiny models, on whatever is here: shows that every step runs.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the models are built, and found the next time.")
def main(only: str | None, repeats: int, tiny: bool, folder: Path | None) -> None:
    """Measure the engine on a GPU."""
    device = device_here()
    if device.type == "cpu" and not tiny:
        raise click.UsageError("there is no GPU here; --tiny runs every step on tiny models and a CPU")
    click.echo(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as made:
        for name, side in SIDES.items():
            if only and name != only:
                continue
            place = (folder or Path(made)) / f"{'tiny-' if tiny else ''}{name}"
            if not (place / "model_index.json").exists():
                if tiny:
                    (tiny_models.sdxl if name == "sdxl" else tiny_models.stable_diffusion)(place)
                else:
                    getattr(random_weights, name)(place, device)
            measure(name, place, 64 if tiny else side, repeats, 4 if tiny else BATCHES[-1])


if __name__ == "__main__":
    main()
