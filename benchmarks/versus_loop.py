"""The pipeline against the loops that people write, on the same models, images and machine, in one run.

    python -m benchmarks.versus_loop --requests 96

batched   diffusers in batches of the same size, open_clip on the whole batch, webdataset.ShardWriter
one       one prompt at a time, its candidates one after another, as most scripts do; over a fourth of the requests
pipeline  `promptmill run`, with all that it does besides: checks, ranks, parts, commits

Every loop renders the same requests with the same number of candidates and keeps the best. The loops use all of the cores through
torch's threads; the pipeline uses them as it does by itself, a generator of one thread on each. Start-up (imports, loading, Ray) is
reported apart; a rate counts from the moment at which models are loaded. Each is run in a process of its own, in turn, several
times; ratios are of the medians.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

CANDIDATES = 4
BATCH = 16
STEPS = 20
ONE_IN = 4


def write_manifest(path: Path, requests: int) -> None:
    """Prompts of the embedded world, all of one mode: what a loop can batch as well as we can."""
    import numpy as np

    from embedded.world import describe, sample_scene

    rng = np.random.default_rng(5)
    with path.open("w") as file:
        for _ in range(requests):
            file.write(json.dumps({"prompt": describe(sample_scene(rng))}) + "\n")


def loop(manifest: Path, out: Path, batch: int) -> dict[str, float]:
    """A hand-written loop: load, render `batch` images at a time, score, write the best of each prompt."""
    began = time.monotonic()
    import numpy as np
    import torch
    import webdataset
    from PIL import Image

    from embedded import weights

    torch.set_num_threads(os.cpu_count() or 1)
    pipeline = weights.load_pipeline()
    clip, preprocess, tokenizer = weights.load_clip()
    prompts = [json.loads(line)["prompt"] for line in manifest.read_text().splitlines()]
    if batch == 1:
        prompts = prompts[: len(prompts) // ONE_IN]  # its rate does not depend on their number
    loaded = time.monotonic()
    out.mkdir(parents=True)
    work = [(number, prompt, seed) for number, prompt in enumerate(prompts) for seed in range(CANDIDATES)]
    best: dict[int, tuple[float, Image.Image]] = {}
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=1000, verbose=0) as writer, torch.no_grad():
        for start in range(0, len(work), batch):
            some = work[start : start + batch]
            images = pipeline(
                [prompt for _, prompt, _ in some],
                num_inference_steps=STEPS,
                guidance_scale=3.0,
                generator=[torch.Generator().manual_seed(CANDIDATES * number + seed) for number, _, seed in some],
            ).images
            shown = clip.encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
            said = clip.encode_text(tokenizer([prompt for _, prompt, _ in some]), normalize=True)
            for (number, _, _), image, score in zip(some, images, (100 * (shown * said).sum(-1)).tolist(), strict=True):
                if number not in best or score > best[number][0]:
                    best[number] = score, image
            for number in [n for n in best if all(n < other for other, _, _ in work[start + batch : start + batch + 1])]:
                score, image = best.pop(number)
                row = {"prompt": prompts[number], "clip_score": score}
                writer.write({"__key__": f"{number:09d}", "png": np.asarray(image), "txt": prompts[number], "json": row})
    done = time.monotonic()
    return {"start-up": loaded - began, "seconds": done - loaded, "images": float(len(work))}


def through_pipeline(manifest: Path, out: Path) -> dict[str, float]:
    """`promptmill run`, told by its own JSON lines when what happened."""
    settings = {
        "manifest": manifest,
        "shards.size": 1000,
        "model.batch": BATCH,
        "defaults.steps": STEPS,
        "defaults.candidates": CANDIDATES,
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "jobs", "run", "embedded", "--out", str(out), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    last = next(event for event in said if event["event"] == "done")
    spent = last["seconds"]
    return {
        "start-up": spent["starting Ray"] + spent["loading models"],
        "seconds": spent["rendering"] + spent["publishing"],
        "images": float(last["totals"]["candidates"]),
    }


@click.command()
@click.option("--requests", default=64, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--loop-only", "only", hidden=True, nargs=3, type=str)
def main(requests: int, repeats: int, only: tuple[str, str, str] | None) -> None:
    """Measure the pipeline against two loops."""
    if only:
        click.echo(json.dumps(loop(Path(only[0]), Path(only[1]), int(only[2]))))
        return
    measured: dict[str, list[dict[str, float]]] = {"batched": [], "one": [], "pipeline": []}
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.jsonl"
        write_manifest(manifest, requests)
        for repeat in range(repeats):
            for name, runs in measured.items():
                out = Path(folder) / f"{name}-{repeat}"
                if name == "pipeline":
                    runs.append(through_pipeline(manifest, out))
                else:
                    batch = BATCH if name == "batched" else 1
                    command = [sys.executable, "-m", "benchmarks.versus_loop", "--loop-only", str(manifest), str(out), str(batch)]
                    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
                click.echo(f"{name} {repeat + 1}: {runs[-1]['images'] / runs[-1]['seconds']:.2f} images/s", err=True)
    rates = {name: statistics.median(run["images"] / run["seconds"] for run in runs) for name, runs in measured.items()}
    click.echo(f"{requests} requests of {CANDIDATES} candidates, {STEPS} steps, batch {BATCH}; medians of {repeats} runs")
    click.echo("| | images/s once warm | pipeline is | start-up, s |")
    click.echo("|---|---:|---:|---:|")
    for name, runs in measured.items():
        start = statistics.median(run["start-up"] for run in runs)
        click.echo(f"| {name} | {rates[name]:.2f} | {rates['pipeline'] / rates[name]:.2f}x | {start:.1f} |")


if __name__ == "__main__":
    main()
