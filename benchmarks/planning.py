"""Measures the cost of planning: rows a second and peak memory for manifests of growing length.

    python -m benchmarks.planning                      # 10^4, 10^5, 10^6 and 10^7 rows
    python -m benchmarks.planning --rows 1000 --rows 100000

Each length is planned in a process of its own, on the embedded preset, from a JSON-lines manifest with a carried column; the named
alternative, in the same process, reads the same manifest with `json.loads` and makes nothing of it. The CPU time is that of all
processes that share the work; other work on the machine changes it less than it does rows a second. Memory is the planning
process's peak over what it had after its imports.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import click

from promptmill.configs.loading import load


def write_manifest(path: Path, rows: int) -> None:
    """Write a JSON-lines manifest of so many rows, with a carried column."""
    colors = ("red", "green", "blue", "yellow", "purple", "orange", "white")
    with path.open("w") as file:
        for number in range(rows):
            prompt = f"a small {colors[number % 7]} circle at the left on a black background"
            file.write(
                json.dumps({"id": f"request-{number:09d}", "prompt": prompt, "seed": number % 2**32, "topic": number % 97}) + "\n"
            )


def measure(path: Path, output: Path, rows: int, shard: int) -> None:
    """Plan one manifest in this process and print a line of the table."""
    from promptmill.jobs.planning.making import look, make_plan

    started = time.monotonic()
    with path.open() as file:
        for line in file:
            json.loads(line)
    reading = time.monotonic() - started

    settings = [f"manifest={path}", f"shards.size={shard}"]
    config = load("embedded", settings)
    before = _peak()
    started, spent = time.monotonic(), _spent()
    plan = make_plan(look(config), str(output))
    planning, spent = time.monotonic() - started, _spent() - spent
    assert plan.counts.requests == rows
    grown = _peak() - before
    ratio = f"{planning / reading:.1f}x"
    click.echo(
        f"| {rows:>10,} | {planning:8.1f} | {rows / planning:10,.0f} | {ratio:>8} | {spent / rows * 1e6:6.1f} | {grown:10.0f} |"
        f" {before + grown:10.0f} |"
    )


def _spent() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peak() -> float:
    """Return the peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@click.command()
@click.option("--rows", multiple=True, type=int, default=(10**4, 10**5, 10**6, 10**7), show_default=True)
@click.option("--shard", default=1000, show_default=True, help="Requests a shard.")
def main(rows: tuple[int, ...], shard: int) -> None:
    """Measure planning for manifests of growing length."""
    click.echo("| rows | seconds | rows/s | json.loads | CPU µs a row | MiB grown | MiB peak |")
    click.echo("|---:|---:|---:|---:|---:|---:|---:|")
    for number in rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "manifest.jsonl"
            write_manifest(path, number)
            # Spawned, since a forked process begins with this one's memory.
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(path, Path(folder) / "out", number, shard))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
