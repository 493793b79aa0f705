"""Measures runs on many GPUs in virtual time: the real lanes and pool sizes, and stand-ins that take as long as their stages.

    python -m benchmarks.scale

Prints for each kind of model and number of GPUs which share of their time generators and scorers work, how much of the driver is
taken, and what limits the run. Seconds of a stage are measured in the same run where this machine can measure them (hashing and
encoding an image as PNG, CLIP's preprocessing); the driver's are those of `benchmarks.units`. Those of a GPU are given: images a
second that a review predicts for one H200, so long as none has been measured. CLIP's own time on the GPU is left out. The pool of
scorers grows as it does in a run, and each scorer has its first unit encoded by one thread, and later ones by as many as it would
start.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import click
import numpy as np
import torch
from open_clip.transform import PreprocessCfg

from promptmill.actors.encoding import threads_needed
from promptmill.actors.flow.actor_slots import HANDS, Pool
from promptmill.actors.flow.lanes import Lanes
from promptmill.actors.pool_sizes import Sizes, card_shares, size_pools
from promptmill.configs.schema import Runtime
from promptmill.jobs.running.rendering import MOST_WAITING
from promptmill.pipelines.scoring.clip_preprocessing import preprocess
from promptmill.shards.image_files import Provenance, encode_image, pixel_sha256
from tests.actors.flow.virtual_time import run

UNIT_S = 20.0  # of a GPU that a unit takes
DRIVER_S = 0.00246  # of the driver a unit, with Ray, parts and commits: measured by `python -m benchmarks.units`
GPUS_A_NODE, CPUS_A_NODE = 8, 128
UNITS_A_GPU = 40
LOAD_S = 30.0  # that an actor takes to load its models
CARD, SCORER = 141 * 10**9, 3 * 10**9  # bytes of an H200, and of CLIP ViT-L-14 with a batch of 64


@dataclass(frozen=True)
class Kind:
    """Holds a kind of model: its name, the images that one GPU renders a second, and the side of an image in pixels."""

    name: str
    images_s: float
    side: int


KINDS = (
    Kind("FLUX.1-dev 1024², 28 steps", 0.18, 1024),
    Kind("SDXL 1024², 30 steps", 0.85, 1024),
    Kind("SD 1.5 512², 25 steps", 6.5, 512),
    Kind("SD 1.5 LCM 512²", 24.0, 512),
)
SIZES = (8, 64, 1000)


@dataclass(frozen=True)
class Image:
    """Holds the seconds that an image takes of a scorer: beside its encoding threads, and of these threads."""

    scoring_s: float
    working_s: float


@dataclass
class Busy:
    """Counts the virtual seconds that stand-ins of a kind have worked, and how many were started."""

    seconds: float = 0.0
    started: int = 0
    threads: int = 1


@dataclass
class Standin:
    """Imitates an actor: takes the driver for a moment, then works in virtual time, on one unit after another."""

    seconds: Callable[[], float]
    busy: Busy
    driver: "Driver"
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def call(self, *work: object) -> object:
        await self.driver.takes(DRIVER_S / 2)  # a unit goes through two actors
        async with self._turn:
            seconds = self.seconds()
            await asyncio.sleep(seconds)
        self.busy.seconds += seconds
        return work[0]

    def kill(self) -> None: ...


def scoring(kind: Kind, image: Image, served: int, threads: int | None, busy: Busy) -> Callable[[], float]:
    """Return a function that returns the seconds of a scorer's next unit."""
    images = kind.images_s * UNIT_S
    there_s = 1 / kind.images_s / served
    later = threads or threads_needed(there_s, image.scoring_s, image.working_s, CPUS_A_NODE // GPUS_A_NODE * served)
    numbers = itertools.chain([threads or 1], itertools.repeat(later))

    def seconds() -> float:
        busy.threads = max(busy.threads, number := next(numbers))
        return images * (image.scoring_s + image.working_s / number)

    return seconds


@dataclass
class Driver:
    """Imitates the one process that hands on units: only one thing at a time."""

    busy: Busy = field(default_factory=Busy)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def takes(self, seconds: float) -> None:
        async with self._turn:
            await asyncio.sleep(seconds)
        self.busy.seconds += seconds


def image_seconds(side: int) -> tuple[float, float, float]:
    """Measure the seconds that an image of noise, the dearest there is, takes of a thread: to preprocess, hash, encode as PNG."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    said = Provenance("a prompt", "", 20, "euler", 7.0, 1, side, side, "a model")
    return (
        _seconds(lambda: preprocess([pixels], PreprocessCfg())),
        _seconds(lambda: pixel_sha256(pixels)),
        _seconds(lambda: encode_image(pixels, "png", 100, said)),
    )


def _seconds(work: Callable[[], object], times: int = 20) -> float:
    """Return the least seconds of a thread that some work takes: other work on the machine only adds to them."""
    spent = []
    for _ in range(times):
        started = time.thread_time()
        work()
        spent.append(time.thread_time() - started)
    return min(spent)


@dataclass(frozen=True)
class Simulated:
    """Holds the figures of a simulated run; `seconds` are virtual, from the moment that generators begin."""

    sizes: Sizes
    seconds: float
    generating: Busy
    finishing: Busy
    driver: Busy


async def simulated(kind: Kind, gpus: int, image: Image, threads: int | None = None) -> Simulated:
    """Send units through the lanes.

    Args:
        kind: The kind of model.
        gpus: The GPUs of the cluster.
        image: Seconds of a scorer that an image takes.
        threads: Encoding threads of a scorer; None for as many as it would start.
    """
    nodes = [{"GPU": min(GPUS_A_NODE, gpus), "CPU": CPUS_A_NODE}] * max(1, gpus // GPUS_A_NODE)
    sizes = size_pools(nodes, card_shares(Runtime(), CARD, None, SCORER), threads=1)
    generating, finishing, driver = Busy(), Busy(), Driver()
    units = UNITS_A_GPU * sizes.generators

    async def generator() -> Standin:
        await asyncio.sleep(LOAD_S)
        generating.started += 1
        return Standin(lambda: UNIT_S, generating, driver)

    async def scorer() -> Standin:
        await asyncio.sleep(LOAD_S)
        finishing.started += 1
        return Standin(scoring(kind, image, sizes.served, threads, finishing), finishing, driver)

    async def convict(unit: int, reasons: list[Exception]) -> None:
        raise AssertionError(f"unit {unit} was convicted: {reasons}")

    flow = Lanes(
        range(units),
        Pool(generator, sizes.generators, HANDS),
        Pool(scorer, sizes.scorers, 1, most=sizes.most_scorers),
        convict,
        lambda unit: [unit],
        MOST_WAITING,
    )
    settled = 0
    async for _ in flow.run():
        settled += 1
    assert settled == units
    return Simulated(sizes, asyncio.get_running_loop().time() - LOAD_S, generating, finishing, driver.busy)


@click.command()
@click.option("--encoders", type=int, help="Threads in which a scorer hashes and encodes; by default as many as it would start.")
@click.option("--kept", default=0.25, show_default=True, help="The share of candidates that is kept, and so encoded.")
def main(encoders: int | None, kept: float) -> None:
    """Print the table of docs/gpus.md."""
    torch.set_num_threads(1)
    columns = "generators | scorers | generators work | scorers work | encoding threads | driver taken | images/s | limit"
    click.echo(f"| model | GPUs | {columns} |")
    click.echo("|---|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    for kind in KINDS:
        scoring_s, hashing_s, encoding_s = image_seconds(kind.side)
        image = Image(scoring_s, hashing_s + kept * encoding_s)
        for gpus in SIZES:
            came, _ = run(simulated(kind, gpus, image, encoders))
            generators, scorers = came.sizes.generators, came.finishing.started
            working = {
                "generators": came.generating.seconds / (generators * came.seconds),
                "scorers": came.finishing.seconds / (scorers * came.seconds),
                "driver": came.driver.seconds / came.seconds,
            }
            first, second, third = (f"{100 * share:.0f}%" for share in working.values())
            shares = f"{first} | {second} | {came.finishing.threads} | {third}"
            rate = kind.images_s * UNIT_S * UNITS_A_GPU * generators / came.seconds
            limit = max(working, key=working.__getitem__)
            click.echo(f"| {kind.name} | {gpus:,} | {generators:,} | {scorers:,} | {shares} | {rate:,.1f} | {limit} |")


if __name__ == "__main__":
    main()
