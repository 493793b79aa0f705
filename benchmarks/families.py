"""Compares the engine with diffusers' own pipelines in families of transformers, on tiny models of random weights, in one run.

    python -m benchmarks.families                        # Stable Diffusion 3, Flux, Z-Image and PixArt
    python -m benchmarks.families --only z-image --requests 96
    python -m benchmarks.families --only sd3 --uniform --repeats 21

Mixed: requests differ in steps, guidance, mode and in the length of their prompts, and some have a ControlNet, where the family has
one (PixArt has none). The alternative gets perfectly sorted groups,
each as one call of diffusers' pipeline at its natural size: everything that can share a call does. Counted are calls of the
denoiser and the rows in them; of the engine both the rows that held a candidate and those of whole batches, padding and all.
Uniform: requests differ in prompt and seed only; there seconds are compared, in turn: the median of the repeats' ratios, with its
95% interval by resampling repeats, on the clock and in this process's CPU time, which other work on the machine disturbs less.
`embedded-flow` is the trained family in the layout of Stable Diffusion 3, whose computing takes longer than Python does.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks.engine import Contender, PlainCalls, sorted_groups
from promptmill.configs.model import Model
from promptmill.configs.own_files import ROOT
from promptmill.configs.weights import ControlNetWeights
from promptmill.manifests.images import Roots
from promptmill.manifests.requests import Request
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.rendering.preparing import Conditioning, Job, jobs_of, prepare_request
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.work.units import Placed
from tests.pipelines.plain import MODES, paint, request
from tests.pipelines.plain_controlnets import CONTROLLED
from tests.pipelines.tiny_controlnets import controlnet
from tests.pipelines.tiny_families import MAKERS

NAMES = ("sd3", "flux-dev", "z-image", "pixart-alpha")
TRAINED = "embedded-flow"
STEPS, GUIDANCE = (4, 6, 8, 12), (1.0, 3.0, 5.0, 7.0)
PROMPTS = ("a circle", "a small red circle at the left", "a large blue square at the right of a small green circle on the left")


def with_controls(family: str, folder: Path, batch: int) -> Model:
    """Return the config of a tiny model of a family, with a ControlNet where the family has some."""
    base = MAKERS[family](folder / family)
    nets = {"canny": controlnet(family, base, folder / f"{family}-canny", 3)} if family in CONTROLLED else {}
    controls = {name: ControlNetWeights(source=str(net)) for name, net in nets.items()}
    return Model(base=str(base), batch=batch, controlnets=controls)


def mixed(number: int, modes: Sequence[str], scheduler: str, steps: Sequence[int] = STEPS) -> list[Request]:
    """Return requests that differ in mode, with ControlNets and without, in steps, guidance and prompt, in no order."""
    rng = random.Random(0)
    # From the first step to the last, as all families have it.
    whole = {"controls": tuple(one.model_copy(update={"start": 0.0, "end": 1.0}) for one in MODES["controlnet"]["controls"])}
    return [
        request(
            f"r{n}",
            **{"mode": (mode := rng.choice(modes)), **MODES[mode], **(whole if "controls" in MODES[mode] else {})},
            steps=rng.choice(steps),
            guidance_scale=rng.choice(GUIDANCE),
            prompt=rng.choice(PROMPTS),
            scheduler=scheduler,
            candidates=1,
        )
        for n in range(number)
    ]


def uniform(number: int, scheduler: str) -> list[Request]:
    """Return requests that differ in their seeds, and by turns in their prompts."""
    said = {"steps": 8, "scheduler": scheduler, "candidates": 1}
    return [request(f"u{n}", prompt=PROMPTS[n % len(PROMPTS)], seed=n, **said) for n in range(number)]


def as_jobs(requests: Sequence[Request], folder: Path) -> list[Job]:
    """Return the jobs that render requests, prepared."""
    jobs: list[Job] = []
    for row, one in enumerate(requests):
        placed = Placed(row, one)
        prepared = prepare_request(placed, Roots((str(folder),)))
        assert isinstance(prepared, Conditioning), prepared
        jobs += jobs_of(placed, prepared, 0)
    return jobs


def ratios(engine: Contender, plain: Contender, jobs: list[Job], repeats: int) -> str:
    """Return the seconds of diffusers by those of the engine for the same jobs, on the clock and of CPU, with intervals."""
    taken: dict[str, list[float]] = {"clock": [], "CPU": []}
    for repeat in range(repeats):
        spent: dict[str, tuple[float, float]] = {}
        turns = [("engine", engine, jobs), ("plain", plain, sorted_groups(jobs))]
        for name, contender, some in turns if repeat % 2 else reversed(turns):
            began = time.process_time()
            clock, _ = contender.render(some)
            spent[name] = (clock, time.process_time() - began)
        for number, name in enumerate(taken):
            taken[name].append(spent["plain"][number] / spent["engine"][number])
    rng = random.Random(0)
    said = []
    for name, some in taken.items():
        drawn = sorted(statistics.median(rng.choices(some, k=repeats)) for _ in range(2000))
        said.append(f"{statistics.median(some):.2f}x ({drawn[49]:.2f} – {drawn[1949]:.2f}) {name}")
    return ", ".join(said)


def counted(contender: Contender, jobs: list[Job]) -> tuple[int, int, int]:
    """Render jobs; return the calls of the denoiser, the rows of candidates in them, and all rows, padding included."""
    seen: list[int] = []
    denoiser = contender.model.denoiser
    if isinstance(contender.path, Slots):
        joined = contender.path.denoiser
        joined.calls = joined.rows = 0
        contender.render(jobs)
        return joined.calls, joined.rows, joined.calls * joined.shape
    hook = denoiser.register_forward_pre_hook(
        lambda module, args, named: seen.append(len([*args, *named.values()][0])), with_kwargs=True
    )
    contender.render(jobs)
    hook.remove()
    return len(seen), sum(seen), sum(seen)


@click.command()
@click.option("--only", type=click.Choice((*NAMES, TRAINED)), multiple=True)
@click.option("--uniform", "uniform_alone", is_flag=True, help="Leave the mixed requests out.")
@click.option("--requests", default=64, show_default=True)
@click.option("--repeats", default=7, show_default=True)
@click.option("--batch", default=8, show_default=True)
def main(only: tuple[str, ...], uniform_alone: bool, requests: int, repeats: int, batch: int) -> None:
    """Count denoiser calls on mixed requests, and compare seconds on uniform ones."""
    torch.set_num_threads(1)
    click.echo(f"{requests} requests of one candidate, batch {batch}, one thread, medians of {repeats} repeats\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paint(folder)
        contenders: dict[str, tuple[Contender, Contender, tuple[str, ...], str]] = {}
        for family in only or (*NAMES, TRAINED):
            trained = Model(base=str(ROOT / "embedded/weights/flow"), batch=batch)
            model = trained if family == TRAINED else with_controls(family, folder, batch)
            facts = read_facts(model)
            scheduler = "ddim" if "ddim" in facts.schedulers else "euler"
            contenders[family] = (Contender(model, Slots), Contender(model, PlainCalls), facts.modes, scheduler)
        if not uniform_alone:
            click.echo("| mixed | calls: diffusers | engine | fewer | rows: diffusers | engine | with padding |")
            click.echo("|---|---:|---:|---:|---:|---:|---:|")
            for family in (one for one in contenders if one != TRAINED):
                engine, plain, modes, scheduler = contenders[family]
                jobs = as_jobs(mixed(requests, modes, scheduler), folder)
                (theirs, their_rows, _), (ours, our_rows, padded) = counted(plain, sorted_groups(jobs)), counted(engine, jobs)
                click.echo(f"| {family} | {theirs} | {ours} | {theirs / ours:.2f}x | {their_rows} | {our_rows} | {padded} |")
            click.echo()
        click.echo("| uniform | seconds of diffusers by those of the engine |")
        click.echo("|---|---|")
        for family, (engine, plain, _, scheduler) in contenders.items():
            same = as_jobs(uniform(requests, scheduler), folder)
            for contender in (engine, plain):
                contender.render(same[: 2 * batch])  # warm
            click.echo(f"| {family} | {ratios(engine, plain, same, repeats)} |")


if __name__ == "__main__":
    main()
