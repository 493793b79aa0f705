"""Measures step caches on both embedded families: what they save, and what they do to images by the oracle and by CLIP.

    python -m benchmarks.caching --folder /tmp/caching

Scenes are those that training never saw, 20 steps, guidance 3. Prices are in evaluations of all blocks, of which a cached one is
the share of its multiplications; times are of the engine alone, in one process, each schedule by turns with none. Intervals are
95%, by resampling requests; differences are paired. What is measured stays in the folder, so that the same command goes on where it
was stopped. At the end stands the share that a cached evaluation is of a whole one, counted without weights, at real sizes.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import diffusers
import numpy as np
import torch

from benchmarks.engine import Contender, as_jobs, request
from benchmarks.random_weights import UNETS
from benchmarks.ranking import ORACLE, percent, plain, right
from promptmill.configs.loading import load
from promptmill.configs.step_caches import StepCache
from promptmill.embedded.evaluate import scenes_for
from promptmill.embedded.world import describe
from promptmill.jobs.calibration.gains import measured
from promptmill.jobs.calibration.policies import FINAL, Trial, sight_of
from promptmill.jobs.calibration.sample import draw
from promptmill.jobs.calibration.trials import Notes, identity, observe
from promptmill.jobs.planning.sources import look
from promptmill.pipelines.rendering.preparing import Job
from promptmill.pipelines.rendering.slots import Slots
from promptmill.pipelines.rendering.step_caching import INNER, Shortened

SEED = 61
FAMILIES = ("embedded", "embedded-flow")
CACHES = (
    StepCache(every=2, first=0.5),
    StepCache(every=2, first=0.25),
    StepCache(every=2, first=0.0),
    StepCache(every=3, first=0.25),
    StepCache(every=5, first=0.25),
    StepCache(every=5, first=0.0),
)
STEPS, CANDIDATES = 20, 4


def seen(folder: Path, family: str, requests: int) -> list[Trial]:
    """Render requests without a cache and by each, and return their trials."""
    scenes, _ = scenes_for(SEED, requests)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"id": f"{n:04d}", "prompt": describe(s)}) + "\n" for n, s in enumerate(scenes)))
    asked = [f"manifest={manifest}", f"defaults.steps={STEPS}", f"defaults.candidates={CANDIDATES}"]
    sources = look(load(family, asked))
    sample = draw(sources, requests)
    notes = Notes(folder / f"{family}.jsonl", identity(sources))

    def progress(done: int, all_: int) -> None:
        if done % 20 == 0:
            click.echo(f"{family}: {done} of {all_}", err=True)

    failed = observe(sources, sample.requests, [("cache", one) for one in CACHES], notes, {ORACLE: right}, progress)
    if failed:
        sys.exit(f"could not be rendered: {failed}")
    return [trial for placed in sample.requests if (trial := notes.trial(placed))]


def means(trials: Sequence[Trial], cache: StepCache | None, name: str, kept: bool) -> np.ndarray:
    """Return the mean score of each request's candidates, or that of the one that CLIP keeps, (R,)."""
    made = []
    for trial in trials:
        sight = trial.sights[sight_of("cache", cache) if cache else FINAL]
        scores = np.array((sight.scores if cache else trial.scores)[name], float)
        made.append(scores[int(np.argmax(np.array(sight.ranks, float)))] if kept else scores.mean())
    return np.array(made)


def quality(family: str, trials: Sequence[Trial], times: dict[str, str]) -> Iterator[str]:
    """Yield the table of a family."""
    yield f"{family}: {len(trials)} requests of {CANDIDATES} candidates"
    yield "| schedule | price | seconds | right, of all | less than without | right, kept | CLIP score; less than without |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    usual = means(trials, None, ORACLE, kept=False)
    points = means(trials, None, "clip", kept=False)
    for cache in (None, *CACHES):
        truth, score = means(trials, cache, ORACLE, kept=False), means(trials, cache, "clip", kept=False)
        sights = [trial.sights[sight_of("cache", cache) if cache else FINAL] for trial in trials]
        price = sum(sum(sight.prices) for sight in sights) / sum(sum(sight.evaluations) for sight in sights)
        kept = measured(means(trials, cache, ORACLE, kept=True))
        less = "" if cache is None else f"{percent(measured(usual - truth)).replace('%', ' points')}"
        clip = plain(measured(score if cache is None else points - score))
        named = str(cache) if cache else "none"
        yield f"| {named} | {100 * price:.1f}% | {times[named]} | {percent(measured(truth))} | {less} | {percent(kept)} | {clip} |"


def timed(family: str, rows: int, repeats: int) -> dict[str, str]:
    """Return the seconds of each schedule as a share of those without a cache: the median of turns, and the least and the most."""
    model = load(family, ["manifest=x"]).model.model_copy(update={"controlnets": {}})
    scheduler = "euler" if family.endswith("flow") else "dpmpp_2m"
    jobs = as_jobs([request(i, steps=STEPS, scheduler=scheduler) for i in range(rows)])
    contender = Contender(model, Slots)

    def by(cache: StepCache | None) -> list[Job]:
        return [replace(job, placed=replace(job.placed, cache=cache)) for job in jobs]

    contender.render(by(None)[: model.batch])
    ratios: dict[str, list[float]] = {str(cache): [] for cache in CACHES}
    for _ in range(repeats):
        for cache in CACHES:
            # Without, with, with, without: what changes slowly on the machine concerns both alike.
            turns = [contender.render(by(one))[0] for one in (None, cache, cache, None)]
            ratios[str(cache)].append((turns[1] + turns[2]) / (turns[0] + turns[3]))
    said = {name: f"{statistics.median(some):.2f} ({min(some):.2f} – {max(some):.2f})" for name, some in ratios.items()}
    return {"none": "1.00", **said}


def real_sizes() -> Iterator[tuple[str, float]]:
    """Yield models of real size by their published configs, and the share that a cached evaluation is of a whole one."""
    with torch.device("meta"):
        rows = 2
        for name, side, more in (
            ("sd15", 64, {}),
            ("sdxl", 128, {"added_cond_kwargs": {"text_embeds": torch.empty(rows, 1280), "time_ids": torch.empty(rows, 6)}}),
        ):
            unet = diffusers.UNet2DConditionModel(**UNETS[name])
            given: dict[str, Any] = {"sample": torch.empty(rows, 4, side, side), "timestep": torch.empty(rows), **more}
            given["encoder_hidden_states"] = torch.empty(rows, 77, unet.config.cross_attention_dim)
            yield f"{name}, {8 * side} x {8 * side}", share_of(unet, given)
        sd3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
        given = {"hidden_states": torch.empty(rows, 16, 128, 128), "timestep": torch.empty(rows)}
        given |= {"encoder_hidden_states": torch.empty(rows, 333, 4096), "pooled_projections": torch.empty(rows, 2048)}
        yield "Stable Diffusion 3 medium, 1024 x 1024", share_of(diffusers.SD3Transformer2DModel(**sd3), given)
        given = {"hidden_states": torch.empty(rows, 4096, 64), "timestep": torch.empty(rows), "guidance": torch.empty(rows)}
        given |= {"encoder_hidden_states": torch.empty(rows, 512, 4096), "pooled_projections": torch.empty(rows, 768)}
        given |= {"img_ids": torch.empty(4096, 3), "txt_ids": torch.empty(512, 3)}
        yield "FLUX.1-dev, 1024 x 1024", share_of(diffusers.FluxTransformer2DModel(guidance_embeds=True), given)


def share_of(denoiser: Any, given: dict[str, Any]) -> float:
    """Return the share of a whole evaluation's multiplications that a cached one takes, of a denoiser without weights."""
    shortened = Shortened(denoiser, denoiser.forward)
    with torch.no_grad():
        shortened(**given, **{INNER: None})
    return shortened.share


def price_of(cache: StepCache, steps: int, share: float) -> float:
    """Return the price of a schedule of so many steps, as a share of the price without it."""
    return 1 - sum(cache.answers(step, steps) for step in range(steps)) * (1 - share) / steps


@click.command()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where trials are kept.")
@click.option("--requests", default=100, show_default=True)
@click.option("--rows", default=32, show_default=True, help="Images of a timed turn.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--family", "families", multiple=True, default=FAMILIES, show_default=True)
def main(folder: Path, requests: int, rows: int, repeats: int, families: Sequence[str]) -> None:
    """Measure step caches."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in families:
        trials = seen(folder, family, requests)
        for line in quality(family, trials, timed(family, rows, repeats)):
            click.echo(line)
        click.echo("")
    click.echo("| model | a cached evaluation | 28 steps, every 2 from 0.25 | every 3 from 0.25 |")
    click.echo("|---|---:|---:|---:|")
    for name, share in real_sizes():
        prices = (price_of(StepCache(every=every, first=0.25), 28, share) for every in (2, 3))
        click.echo(f"| {name} | {100 * share:.1f}% | " + " | ".join(f"{100 * price:.1f}%" for price in prices) + " |")


if __name__ == "__main__":
    main()
