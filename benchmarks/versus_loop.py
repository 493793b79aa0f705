"""Compares the pipeline with the loops that people write, on the same models, images and machine, in one run.

    python -m benchmarks.versus_loop --requests 64

batched   diffusers in batches of the same size, open_clip on the whole batch, webdataset.ShardWriter; all cores by torch's threads
split     the same loop, a process of one thread on each core, each with its share of the manifest
one       one prompt at a time, its candidates one after another, as most scripts do; over a fourth of the requests
pipeline  `promptmill run`, with all that it does besides: checks, ranks, parts, commits; a generator of one thread on each core

Every one renders the same requests with the same seeds and keeps the best of four. Start-up (imports, loading, Ray) is reported
apart; a rate counts from the moment at which models are loaded. Each is run in processes of its own, in turn, several times; ratios
are of the medians. At the end the images that the pipeline kept are held against those of the batched loop.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image

from promptmill.shards.tars import read_tar

CANDIDATES = 4
BATCH = 16
STEPS = 20
ONE_IN = 4


def write_manifest(path: Path, requests: int) -> None:
    """Write prompts of the embedded world, all of one mode: what a loop can batch as well as we can."""
    from promptmill.embedded.world import describe, sample_scene

    rng = np.random.default_rng(5)
    with path.open("w") as file:
        for number in range(requests):
            row = {"id": f"{number:09d}", "prompt": describe(sample_scene(rng)), "seed": CANDIDATES * number}
            file.write(json.dumps(row) + "\n")


def loop(manifest: Path, out: Path, batch: int, part: int, parts: int) -> dict[str, float]:
    """Render a part of the manifest by a hand-written loop: `batch` images at a time, score, write the best of each prompt."""
    began = time.monotonic()
    import torch
    import webdataset

    from promptmill.embedded import weights

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // parts))
    pipeline = weights.load_pipeline()
    clip, preprocess, tokenizer = weights.load_clip()
    prompts = dict(enumerate(json.loads(line)["prompt"] for line in manifest.read_text().splitlines()))
    if batch == 1:
        prompts = {number: prompts[number] for number in range(len(prompts) // ONE_IN)}  # its rate does not depend on their number
    prompts = {number: prompt for number, prompt in prompts.items() if number % parts == part}
    loaded = time.monotonic()
    out.mkdir(parents=True)
    work = [(number, prompt, seed) for number, prompt in prompts.items() for seed in range(CANDIDATES)]
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
    """Render by `promptmill run`; return the times that its own JSON lines give."""
    settings = {
        "manifest": manifest,
        "shards.size": 1000,
        "model.batch": BATCH,
        "defaults.steps": STEPS,
        "defaults.candidates": CANDIDATES,
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "promptmill", "run", "embedded", "--out", str(out), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    last = next(event for event in said if event["event"] == "done")
    spent = last["seconds"]
    return {
        "start-up": spent["starting Ray"] + spent["loading models"],
        "seconds": spent["rendering"] + spent["publishing"],
        "images": float(last["totals"]["candidates"]),
    }


def hand_written(manifest: Path, out: Path, batch: int, parts: int) -> dict[str, float]:
    """Render by the loop in processes of its own; return the times, of several processes the slowest's."""
    arguments = [sys.executable, "-m", "benchmarks.versus_loop", "--loop-only", str(manifest)]
    started = [
        subprocess.Popen([*arguments, str(out / str(part)), str(batch), str(part), str(parts)], stdout=subprocess.PIPE, text=True)
        for part in range(parts)
    ]
    said = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    together = {name: max(one[name] for one in said) for name in ("start-up", "seconds")}
    return {**together, "images": sum(one["images"] for one in said)}


def kept(out: Path, by_id: bool) -> dict[str, np.ndarray]:
    """Return the images that were kept, by the request's number."""
    found = {}
    for tar in sorted(out.rglob("*.tar")):
        for sample in read_tar(tar.read_bytes()):
            name = json.loads(sample.files["json"])["id"] if by_id else sample.key
            found[name] = np.array(Image.open(io.BytesIO(sample.files["png"]))).astype(int)
    return found


@click.command()
@click.option("--requests", default=64, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--loop-only", "only", hidden=True, nargs=5, type=str)
def main(requests: int, repeats: int, only: tuple[str, str, str, str, str] | None) -> None:
    """Measure the pipeline against three loops."""
    if only:
        click.echo(json.dumps(loop(Path(only[0]), Path(only[1]), int(only[2]), int(only[3]), int(only[4]))))
        return
    cores = os.cpu_count() or 1
    contenders: dict[str, Callable[[Path, Path], dict[str, float]]] = {
        "batched": lambda manifest, out: hand_written(manifest, out, BATCH, 1),
        "split": lambda manifest, out: hand_written(manifest, out, BATCH, cores),
        "one": lambda manifest, out: hand_written(manifest, out, 1, 1),
        "pipeline": through_pipeline,
    }
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.jsonl"
        write_manifest(manifest, requests)
        for repeat in range(repeats):
            for name, runs in measured.items():
                runs.append(contenders[name](manifest, Path(folder) / f"{name}-{repeat}"))
                click.echo(f"{name} {repeat + 1}: {runs[-1]['images'] / runs[-1]['seconds']:.2f} images/s", err=True)
        mine, theirs = kept(Path(folder) / "pipeline-0", by_id=True), kept(Path(folder) / "batched-0", by_id=False)
    rates = {name: statistics.median(run["images"] / run["seconds"] for run in runs) for name, runs in measured.items()}
    click.echo(
        f"{requests} requests of {CANDIDATES} candidates, {STEPS} steps, batch {BATCH}, {cores} cores; medians of {repeats} runs"
    )
    click.echo("| | images/s once warm | pipeline is | start-up, s |")
    click.echo("|---|---:|---:|---:|")
    for name, runs in measured.items():
        start = statistics.median(run["start-up"] for run in runs)
        click.echo(f"| {name} | {rates[name]:.2f} | {rates['pipeline'] / rates[name]:.2f}x | {start:.1f} |")
    far = [int(np.abs(mine[number] - theirs[number]).max()) for number in mine]
    click.echo(f"kept images within 2 levels of the batched loop's: {sum(most <= 2 for most in far)} of {len(far)}")


if __name__ == "__main__":
    main()
