"""Measures the driver over many units of stand-in work: its memory, units a second, and how much time is not the generators'.

    python -m benchmarks.units                      # 20,000 units: some minutes on two cores
    python -m benchmarks.units --seconds 0.2        # a generator works so long on each; it takes two at once

The generator paints and the scorer scores without models; parts, shards, commits, Ray's processes and calls are real. A unit is one
request of one 64 x 64 image, so that what is counted is handling and not work.
"""

import json
import tempfile
import time
from pathlib import Path

import click

from tests.chaos.site import LEFT_ALONE_S, Fresh, plan, problems


@click.command()
@click.option("--units", default=20_000, show_default=True)
@click.option("--seconds", default=0.0, show_default=True, help="A unit takes on its generator.")
@click.option("--generators", default=2, show_default=True)
def main(units: int, seconds: float, generators: int) -> None:
    """Run many units."""
    with tempfile.TemporaryDirectory() as name:
        template = plan(Path(name), units, shard_size=500, requests=1, candidates=1)
        options = ("--seconds", str(seconds), "--generators", str(generators))
        site = Fresh.of(template, Path(name) / "site", None, *options)
        with site.driver() as process:
            assert process.wait(max(LEFT_ALONE_S, 3600)) == 0, (site.notes / "errors").read_text()
        said = [json.loads(line) for line in (site.notes / "said").read_text().splitlines() if line.startswith("{")]
        (done,) = (event for event in said if event.get("event") == "done")
        own = said[-1]
        rendering = done["seconds"]["rendering"]
        memory = own["memory"]
        first, last = memory[len(memory) // 5], memory[-1]
        minutes = 0.8 * len(memory) / 60
        click.echo(f"{units:,} units in {rendering:.0f} s: {units / rendering:.1f} units/s, {generators} generators")
        click.echo(f"driver: {own['cpu_s']:.0f} s of CPU, {1000 * own['cpu_s'] / units:.2f} ms a unit, start-up included")
        growth = (last - first) / minutes
        click.echo(
            f"driver: {first:.0f} MiB after a fifth, {last:.0f} MiB at the end, {growth:+.2f} a minute; most {max(memory):.0f}"
        )
        if seconds:
            busy = units * seconds / (2 * generators)
            click.echo(f"not the generators' time: {100 * (1 - busy / rendering):.1f}%")
        began = time.monotonic()
        found = problems(site.out)
        click.echo(
            f"verify: {len(found)} problems in {time.monotonic() - began:.0f} s; requests settled: {done['totals']['requests']:,}"
        )


if __name__ == "__main__":
    main()
