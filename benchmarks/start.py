"""Measures a start, from the command to the first image, against a bare script that does the same work.

    python -m benchmarks.start --repeats 5 [--other PROMPTMILL]

bare   a script of diffusers and open_clip: import, load the embedded family and its CLIP model, render one image, score, write
ray    `promptmill run` of one request of one candidate; its workers are Ray's
here   the same with runtime.workers=here
other  the same as `ray` by another version's command `promptmill`

Each is a process of its own, begun in turn, so that a machine that gets slower is slow for all; what counts is the time until the
image is there: on disk for the script, in a durable part for the runs. The first round only warms the disk's cache. Ratios are of
the medians, to `bare`.
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

from promptmill.configs.own_files import ROOT

PROMPT = "a small red circle at the left on a black background"
STEPS = 4
WEIGHTS = ROOT / "embedded" / "weights"

BARE = f"""
import open_clip, torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained({str(WEIGHTS / "pipeline")!r})
clip, preprocess = open_clip.create_model_from_pretrained("local-dir:{WEIGHTS / "clip"}")
words = open_clip.get_tokenizer("local-dir:{WEIGHTS / "clip"}")
image = pipeline({PROMPT!r}, num_inference_steps={STEPS}, height=64, width=64).images[0]
with torch.inference_mode():
    images, texts = clip.encode_image(preprocess(image)[None]), clip.encode_text(words([{PROMPT!r}]))
    score = torch.nn.functional.cosine_similarity(images, texts)
image.save("first.png")
print("first image", flush=True)
"""


def command(way: str, folder: Path, other: str | None) -> list[str]:
    """Return the command of a way, whose output goes into a folder."""
    if way == "bare":
        return [sys.executable, "-c", BARE]
    settings = [f"manifest={folder / 'rows.jsonl'}", f"defaults.steps={STEPS}", "defaults.candidates=1", "model.batch=2"]
    settings += ["runtime.workers=here"] if way == "here" else []
    words = [word for setting in settings for word in ("--set", setting)]
    begin = [other] if way == "other" and other else [sys.executable, "-m", "promptmill"]
    return [*begin, "run", "embedded", "--out", str(folder / "out"), *words]


def seconds(way: str, other: str | None) -> float:
    """Return the seconds from the start of a process until it says that its first image is there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n")
        began, took = time.monotonic(), None
        # Another version finds its own modules.
        there = {name: value for name, value in os.environ.items() if way != "other" or name != "PYTHONPATH"}
        process = subprocess.Popen(
            command(way, folder, other), cwd=folder, env=there, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if took is None and (line.startswith("first image") or '"progress"' in line):
                took = time.monotonic() - began
        if process.wait() or took is None:
            raise click.ClickException(f"{way}: exited with {process.returncode} and made no image")
        return took


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option("--other", metavar="PROMPTMILL", help="The command of another version.")
def main(repeats: int, other: str | None) -> None:
    """Measure starts in turn, and print their medians."""
    ways = ["bare", "ray", "here", *(["other"] if other else [])]
    took: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way in ways:
            found = seconds(way, other)
            click.echo(f"{way} {found:.2f} s{'' if turn else ', not counted'}", err=True)
            if turn:
                took[way].append(found)
    bare = statistics.median(took["bare"])
    click.echo("| | to the first image, s | least and most | to bare |\n|---|---:|---:|---:|")
    for way in ways:
        middle = statistics.median(took[way])
        click.echo(f"| {way} | {middle:.2f} | {min(took[way]):.2f} to {max(took[way]):.2f} | {middle / bare:.2f}x |")


if __name__ == "__main__":
    main()
