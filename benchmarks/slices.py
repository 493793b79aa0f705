"""Measures a row of many candidates: the memory of generator and scorer, and how soon the first candidates are durable.

    python -m benchmarks.slices                          # 4,000 candidates of 256 x 256, cut into slices and uncut
    python -m benchmarks.slices --side 512 --candidates 1000

The generator paints and the scorer scores without models, so that what is measured is what the images take. All else is real.
"""

import json
import re
import tempfile
import time
from pathlib import Path

import click

from promptmill.configs.loading import load
from promptmill.jobs.planning.making import make_plan
from promptmill.jobs.planning.sources import look
from tests.chaos.site import Fresh, problems, published, workers

TITLES = {"generator": "ray::Generator", "scorer": "ray::Scorer", "join": "ray::join_unit"}


def memory(pid: int) -> tuple[float, float]:
    """Return the most that a process has held resident so far, with its part of Ray's object store, and its own now, in MiB."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    most, own = (int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) / 1024 for name in ("VmHWM", "RssAnon"))
    return most, own


@click.command()
@click.option("--candidates", default=4000, show_default=True)
@click.option("--side", default=256, show_default=True, help="Of the images, in pixels.")
@click.option("--batch", default=8, show_default=True)
@click.option("--steps", default=20, show_default=True)
def main(candidates: int, side: int, batch: int, steps: int) -> None:
    """Render one row twice: cut into slices, and as one unit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text(json.dumps({"id": "many", "prompt": "prompt", "candidates": candidates}) + "\n")
        settings = [f"manifest={folder / 'rows.jsonl'}", f"defaults.width={side}", f"defaults.height={side}"]
        config = load("embedded", [*settings, f"model.batch={batch}", f"defaults.steps={steps}"])
        plan = make_plan(look(config), str(folder / "template"))
        click.echo(f"{candidates:,} candidates of {side} x {side}, {plan.counts.units} slices; at most, resident / own MiB")
        click.echo("| | generator | scorer | join | first part after | whole run |\n|---|---:|---:|---:|---:|---:|")
        made = []
        for what, options in (("cut", ()), ("uncut", ("--uncut",))):
            site = Fresh.of(folder / "template", folder / what, None, "--generators", "1", "--seconds", "0", *options)
            most, first, began = dict.fromkeys(TITLES, (0.0, 0.0)), 0.0, time.monotonic()
            with site.driver() as process:
                while process.poll() is None:
                    for kind, title in TITLES.items():
                        for pid in workers(title, process.pid):
                            try:
                                now = memory(pid)
                                most[kind] = max(most[kind][0], now[0]), max(most[kind][1], now[1])
                            except (FileNotFoundError, ProcessLookupError, IndexError):
                                continue  # gone in between
                    if not first and any((folder / what / "out" / "parts").glob("*.parquet")):
                        first = time.monotonic() - began
                    time.sleep(0.02)
            assert process.returncode == 0, (site.notes / "errors").read_text()
            figures = " | ".join(f"{resident:,.0f} / {own:,.0f}" for resident, own in most.values())
            click.echo(f"| {what} | {figures} | {first:.1f} s | {time.monotonic() - began:.1f} s |")
            assert not problems(site.out), problems(site.out)
            made.append(published(site.out))
        click.echo("the same bytes" if made[0] == made[1] else "OTHER BYTES")


if __name__ == "__main__":
    main()
