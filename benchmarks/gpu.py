"""Measures a GPU in ten minutes, block by block, each in a process with a limit of its own.

    python -m benchmarks.gpu                        # on a GPU: some eight minutes; without Ray
    python -m benchmarks.gpu --tiny                 # every block on tiny models and a CPU: shows that it runs, measures nothing
    python -m benchmarks.gpu --only rows --only sdxl
    python -m benchmarks.gpu --to figures.json      # the figures as they come, block by block

Prints the figures as tables, and at the end which of promptmill's claims they contradict. `benchmarks.gpu_images` measures whole
images against plain diffusers, which takes longer.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu_blocks import BLOCKS, figures_of


def in_a_process(name: str, tiny: bool) -> dict[str, Any]:
    """Run a block in a process of its own; return its figures, or the reason why there are none."""
    limit, _ = BLOCKS[name]
    command = [sys.executable, "-m", "benchmarks.gpu", "--block", name, *(["--tiny"] if tiny else [])]
    started = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"left out": f"not done within {limit:g} s"}
    if done.returncode:
        return {"left out": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": round(time.monotonic() - started, 1)}


def contradicted(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield promptmill's claims that figures contradict, one line each."""
    for name, figures in found.items():
        for key, value in figures.items():
            if " equal of " in key and value != int(key.rsplit(" ", 1)[1]):
                yield f"{name}: images are those of plain diffusers: {key}: {value}"
            if value is False:
                yield f"{name}: a row's bits depend on nothing but the row: not {key}"
            if isinstance(value, Mapping) and value.get("known") is False:
                yield f"{name}: an error of the hardware is known as such: not {value['said']!r}"
            if key.endswith("models busy %") and value < (97 if key.startswith("uniform") else 85):
                yield f"{name}: the engine keeps the models busy: {key} {value}"
        if {"LoRA merged ms", "eager ms"} <= figures.keys() and figures["LoRA merged ms"] > 1.05 * figures["eager ms"]:
            yield f"{name}: a merged LoRA costs nothing: {figures['LoRA merged ms']} ms after {figures['eager ms']} ms"
        if "left out" in figures:
            yield f"{name}: was not measured: {figures['left out']}"


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*BLOCKS]), help="Some blocks.")
@click.option("--tiny", is_flag=True, help="Tiny models, on whatever is here: shows that every block runs.")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="A file for the figures, written block by block.")
@click.option("--block", type=click.Choice([*BLOCKS]), hidden=True)
def main(only: tuple[str, ...], tiny: bool, to: Path | None, block: str | None) -> None:
    """Measure a GPU."""
    if block:
        click.echo(json.dumps(figures_of(block, tiny)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in only or BLOCKS:
        found[name] = in_a_process(name, tiny)
        click.echo(f"\n| {name} | |\n|---|---|")
        for key, value in found[name].items():
            click.echo(f"| {key} | {value} |")
        if to:
            to.write_text(json.dumps(found, indent=1) + "\n")
    said = [] if tiny else [*contradicted(found)]
    if tiny:
        missing = [f"{name}: {figures['left out']}" for name, figures in found.items() if "left out" in figures]
        click.echo("\n" + "\n".join([*missing, "tiny models: the figures say that every block runs, and no more"]))
    else:
        click.echo("\n" + ("\n".join(said) or "no claim is contradicted"))


if __name__ == "__main__":
    main()
