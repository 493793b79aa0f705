"""Compares the slot engine with diffusers' own pipelines, on the embedded family, in one run.

    python -m benchmarks.engine                       # all three, minutes on two cores
    python -m benchmarks.engine uniform               # requests that differ in prompt and seed only
    python -m benchmarks.engine mixed --requests 600  # shuffled steps, guidance, schedulers and modes

The alternative gets perfectly sorted groups: everything that can share a pipeline call does. The alternative runs at the same batch
size, padded to it and at each group's natural size; the faster of the two counts. Repeats are interleaved, and figures are medians.
Images are compared on the way: padded batches and slots of guided requests make the same bits.
"""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
import torch

from promptmill.configs.loading import load
from promptmill.configs.model import Model
from promptmill.configs.parameters import Control
from promptmill.manifests.images import Roots
from promptmill.manifests.requests import Request
from promptmill.pipelines.rendering.calls import call, candidate
from promptmill.pipelines.rendering.loaded_model import LoadedModel
from promptmill.pipelines.rendering.loading import load_model
from promptmill.pipelines.rendering.preparing import Conditioning, Job, jobs_of, prepare_request
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.results import Candidate
from promptmill.pipelines.work.units import Placed, bucket_of

IMAGES = Path(__file__).parents[1] / "configs" / "presets" / "quickstart" / "images"
STEPS, GUIDANCE = (8, 12, 20, 30, 40), (1.0, 2.0, 3.0, 5.0, 7.0, 9.0)
SCHEDULERS = ("dpmpp_2m", "euler", "ddim", "unipc")
MODES = ("txt2img", "img2img", "inpaint", "controlnet", "controlnet_img2img", "controlnet_inpaint")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white")


def request(number: int, mode: str = "txt2img", **values: object) -> Request:
    """Return a request for a scene of the embedded family, with the images that the mode needs."""
    inits = sorted(IMAGES.glob("img2img-*.png"))
    edges = sorted(IMAGES.glob("canny-*-edges.png"))
    masks = sorted(IMAGES.glob("inpaint-*mask*.png"))
    has_init = mode.endswith(("img2img", "inpaint")) and mode != "txt2img"
    defaults: dict[str, object] = {
        "id": str(number),
        "prompt": f"a large {COLORS[number % 7]} circle at the left on a black background",
        "negative_prompt": "",
        "mode": mode,
        "init_image": inits[number % len(inits)].name if has_init else None,
        "mask_image": masks[number % len(masks)].name if mode.endswith("inpaint") else None,
        "controls": (Control(type="canny", image=edges[number % len(edges)].name),) if mode.startswith("controlnet") else (),
        "strength": 0.8 if has_init else None,
        "width": 64,
        "height": 64,
        "steps": 20,
        "guidance_scale": 3.0,
        "guidance_rescale": 0.0,
        "scheduler": "dpmpp_2m",
        "seed": None,
        "candidates": 1,
        "keep": 1,
        "loras": (),
        "carried": {},
    }
    return Request(**{**defaults, **values})  # type: ignore[arg-type]


def mixed_requests(number: int) -> list[Request]:
    """Return requests with shuffled steps, guidance, schedulers and modes."""
    rng = random.Random(0)
    combinations = itertools.product(STEPS, GUIDANCE, SCHEDULERS, MODES)
    some = list(combinations)
    rng.shuffle(some)
    chosen = [some[i % len(some)] for i in range(number)]
    return [
        request(i, mode, steps=steps, guidance_scale=guidance, scheduler=scheduler)
        for i, (steps, guidance, scheduler, mode) in enumerate(chosen)
    ]


def as_jobs(requests: list[Request]) -> list[Job]:
    """Return the jobs that render requests, prepared."""
    roots = Roots((str(IMAGES),))
    jobs: list[Job] = []
    for row, one in enumerate(requests):
        placed = Placed(row, one)
        prepared = prepare_request(placed, roots)
        assert isinstance(prepared, Conditioning), prepared
        jobs += jobs_of(placed, prepared, 0)
    return jobs


class Contender:
    """Holds a loaded model and a way to render jobs with it."""

    def __init__(self, model: Model, make: Callable[[LoadedModel, int], "Slots | PlainCalls"]):
        self.model = load_model(model)
        self.path = make(self.model, model.batch)

    def render(self, jobs: list[Job]) -> tuple[float, dict[tuple[int, int], Candidate]]:
        """Render jobs; return the seconds taken, and the candidates by row and index."""
        made: dict[tuple[int, int], Candidate] = {}

        def settled(job: Job, result: object) -> None:
            assert isinstance(result, Candidate), result
            made[job.placed.row, job.index] = result

        started = time.monotonic()
        with torch.no_grad():
            self.path.add(jobs, settled)
            while self.path.busy:
                self.path.step()
        return time.monotonic() - started, made


class PlainCalls:
    """Renders by calls of diffusers' pipelines, as people write them: each holds jobs that can share a call.

    Args:
        model: The loaded model.
        batch: Candidates a call, at most.
        padded: Whether short calls are filled up to `batch`; else their bits depend on the number of their jobs.
    """

    def __init__(self, model: LoadedModel, batch: int, padded: bool = False):
        self._model, self._batch, self._padded = model, batch, padded
        self._queue: list[tuple[list[Job], Callable[[Job, Candidate], object]]] = []

    def add(self, jobs: list[Job], settled: Callable[[Job, Candidate], object]) -> None:
        for _, some in itertools.groupby(jobs, key=lambda job: bucket_of(job.request)):
            of_one = list(some)
            self._queue += [(of_one[at : at + self._batch], settled) for at in range(0, len(of_one), self._batch)]

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def step(self) -> None:
        """Render the jobs of one call."""
        jobs, settled = self._queue.pop(0)
        for job, made in zip(jobs, self._rendered(jobs), strict=False):
            settled(job, made)

    def _rendered(self, jobs: Sequence[Job]) -> Iterator[Candidate]:
        one = jobs[0].request
        pipeline = self._model.pipeline(one.mode, [control.type for control in one.controls], one.scheduler)
        filled = [*jobs, *[jobs[-1]] * (self._batch - len(jobs))] if self._padded else jobs
        yield from (candidate(job, *made, 0, 0) for job, made in zip(filled, call(pipeline, self._model, filled), strict=True))


def sorted_groups(jobs: list[Job]) -> list[Job]:
    """Return jobs sorted so that those that can share a pipeline call stand together."""
    return sorted(jobs, key=lambda job: str(bucket_of(job.request)))


def model_of(batch: int, threads: int) -> Model:
    """Return the embedded family's model config for a batch size and a number of threads, which torch takes from now on."""
    torch.set_num_threads(threads)
    return load("embedded", [f"model.batch={batch}", f"model.threads={threads}"]).model


def compare(model: Model, jobs: list[Job], repeats: int, padded_too: bool) -> None:
    """Render jobs by each contender in turn, print the medians, and compare the images."""
    slots, natural = Contender(model, Slots), Contender(model, PlainCalls)
    padded = Contender(model, lambda loaded, batch: PlainCalls(loaded, batch, padded=True)) if padded_too else None
    contenders = {"slots": (slots, jobs), "natural": (natural, sorted_groups(jobs))}
    if padded:
        contenders["padded"] = (padded, sorted_groups(jobs))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    made = {}
    for contender, some in contenders.values():
        contender.render(some[: model.batch])  # warm
    assert isinstance(slots.path, Slots)
    slots.path.denoiser.calls = slots.path.denoiser.rows = 0
    for _ in range(repeats):
        for name, (contender, some) in contenders.items():
            spent, made[name] = contender.render(some)
            seconds[name].append(spent)
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    best = min((name for name in medians if name != "slots"), key=medians.__getitem__)
    for name, spent in medians.items():
        each = ", ".join(f"{one:.1f}" for one in seconds[name])
        click.echo(f"  {name:8} {len(jobs) / spent:6.2f} images/s   {spent:7.1f} s ({each})")
    click.echo(f"  slots are {medians[best] / medians['slots']:.2f}x of the better, {best}")
    click.echo(f"  rows that held a wanted candidate: {100 * slots.path.share:.1f}%")
    if padded:
        guided = [job for job in jobs if job.request.guidance_scale > 1]
        places = [(job.placed.row, job.index) for job in guided]
        same = sum((made["slots"][place].pixels == made["padded"][place].pixels).all() for place in places)
        click.echo(f"  bit-equal to padded batches: {same} of {len(guided)} guided images")


@click.group()
def main() -> None:
    """Measure the slot engine."""


THREADS = click.option("--threads", default=2, show_default=True)
BATCH = click.option("--batch", default=16, show_default=True)


@main.command()
@click.option("--requests", default=128, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@BATCH
@THREADS
def uniform(requests: int, repeats: int, batch: int, threads: int) -> None:
    """Compare on requests that differ in prompt and seed only."""
    click.echo(f"uniform: {requests} requests, 20 steps, batch {batch}, {threads} threads, medians of {repeats}")
    compare(model_of(batch, threads), as_jobs([request(i) for i in range(requests)]), repeats, padded_too=True)


@main.command()
@click.option("--requests", default=600, show_default=True)
@click.option("--repeats", default=1, show_default=True)
@click.option("--padded/--no-padded", default=False, help="Padded groups too: with nearly as many groups as requests, very slow.")
@BATCH
@THREADS
def mixed(requests: int, repeats: int, padded: bool, batch: int, threads: int) -> None:
    """Compare on requests with shuffled steps, guidance, schedulers and modes."""
    jobs = as_jobs(mixed_requests(requests))
    groups = len({bucket_of(job.request) for job in jobs})
    click.echo(f"mixed: {requests} requests in {groups} groups, batch {batch}, {threads} threads, {repeats} repeats")
    compare(model_of(batch, threads), jobs, repeats, padded)


if __name__ == "__main__":
    main()
