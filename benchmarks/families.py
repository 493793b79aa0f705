"""Compares the engine with diffusers' own pipelines in families of transformers, on tiny models of random weights, in one run.

    python -m benchmarks.families                        # Stable Diffusion 3, Flux, Z-Image and PixArt
    python -m benchmarks.families --only z-image --requests 96

Mixed: requests differ in steps, guidance, mode and in the length of their prompts, and some have a ControlNet, where the family has
one (PixArt has none). The alternative gets perfectly sorted groups,
each as one call of diffusers' pipeline at its natural size: everything that can share a call does. Counted are calls of the
denoiser and the rows in them; of the engine both the rows that held a candidate and those of whole batches, padding and all.
Uniform: requests differ in prompt and seed only; there the seconds are compared, in turn, as medians.
"""

import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from benchmarks.engine import Contender, PlainCalls, sorted_groups
from promptmill.configs.model import Model
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
@click.option("--only", type=click.Choice(NAMES), multiple=True)
@click.option("--requests", default=64, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--batch", default=8, show_default=True)
def main(only: tuple[str, ...], requests: int, repeats: int, batch: int) -> None:
    """Count denoiser calls on mixed requests, and compare seconds on uniform ones."""
    torch.set_num_threads(1)
    click.echo(f"{requests} requests of one candidate, batch {batch}, one thread, medians of {repeats}\n")
    click.echo("| family | calls: diffusers | engine | fewer | rows: diffusers | engine | with padding | uniform |")
    click.echo("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paint(folder)
        for family in only or NAMES:
            model = with_controls(family, folder, batch)
            facts = read_facts(model)
            scheduler = "ddim" if "ddim" in facts.schedulers else "euler"
            engine, plain = Contender(model, Slots), Contender(model, PlainCalls)
            jobs = as_jobs(mixed(requests, facts.modes, scheduler), folder)
            (theirs, their_rows, _), (ours, our_rows, padded) = counted(plain, sorted_groups(jobs)), counted(engine, jobs)
            same = as_jobs(uniform(requests, scheduler), folder)
            seconds: dict[str, list[float]] = {"engine": [], "plain": []}
            for contender in (engine, plain):
                contender.render(same[: 2 * batch])  # warm
            for _ in range(repeats):
                seconds["engine"].append(engine.render(same)[0])
                seconds["plain"].append(plain.render(sorted_groups(same))[0])
            ratio = statistics.median(seconds["plain"]) / statistics.median(seconds["engine"])
            calls = f"{theirs} | {ours} | {theirs / ours:.2f}x"
            click.echo(f"| {family} | {calls} | {their_rows} | {our_rows} | {padded} | {ratio:.2f}x |")
    click.echo("\nuniform: seconds of diffusers by those of the engine")


if __name__ == "__main__":
    main()
