"""Checks that memory stays flat: the real job over small units for minutes, every process watched.

    python -m benchmarks.soak --minutes 5

Renders endless requests of one image and two steps by the embedded family, samples the resident memory of the driver, every actor
and Ray's own processes, and then stops the run as Ctrl-C does. For each kind of process: its memory after a fifth of the time and
at the end, and the slope between, by least squares.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np

EVERY_S = 2.0
ROWS = 200_000  # more than there is time for
PROMPTS = 200  # distinct; so the caches of texts, which are bounded, are full long before the first figure is taken
MAX_GROWTH = 0.05  # of its memory after a fifth of the time, and more than SLACK: more than that is a leak
SLACK = 16  # MiB


def resident(root: int) -> dict[str, float]:
    """Return the resident memory, in MiB, of a process and its descendants, summed by kind."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children[int(stat[1])].append(int(entry.name))
    found: dict[str, float] = defaultdict(float)
    todo = [root]
    while todo:
        pid = todo.pop()
        todo += children[pid]
        try:
            name = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            rollup = (Path("/proc") / str(pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        # Without what lies in the object store, which is one mapping shared by all.
        private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(("Anonymous:",)))
        found[_kind(name, pid == root)] += private / 1024
    return found


def _kind(command: str, driver: bool) -> str:
    if driver:
        return "driver"
    for kind in ("Generator", "Scorer", "assemble", "IDLE", "gcs_server", "raylet"):
        if kind in command.split(" ", 1)[0] or f"/{kind}" in command:
            return kind
    return "other"


@click.command()
@click.option("--minutes", default=5.0, show_default=True)
def main(minutes: float) -> None:
    """Watch the memory of a long run."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.jsonl"
        with manifest.open("w") as file:
            for number in range(ROWS):
                file.write(
                    json.dumps({"prompt": f"a small red circle at the left on a black background, {number % PROMPTS}"}) + "\n"
                )
        settings = ["manifest=" + str(manifest), "defaults.steps=2", "defaults.candidates=1", "model.batch=4", "shards.size=200"]
        options = [part for setting in settings for part in ("--set", setting)]
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "promptmill", "run", "embedded", "--out", str(out), *options]
        log = Path(folder) / "log.jsonl"
        samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        with log.open("w") as stream:
            run = subprocess.Popen(command, stdout=stream)
            while '"progress"' not in log.read_text():
                if run.poll() is not None:
                    sys.exit(f"the run ended at once with {run.returncode}")
                time.sleep(1)
            started = time.monotonic()
            while (now := time.monotonic() - started) < 60 * minutes:
                for kind, size in resident(run.pid).items():
                    samples[kind].append((now, size))
                time.sleep(EVERY_S)
            os.kill(run.pid, signal.SIGINT)
            status = run.wait()
        events = [json.loads(line) for line in log.read_text().splitlines()]
        settled = [event for event in events if event["event"] == "progress"][-1]["settled"]
        shards = sum(event["event"] == "shard" for event in events)
        left = len(list((out / "parts").iterdir()))
    click.echo(f"{settled:,} images in small units, {shards} shards, {minutes:g} minutes; stopped with {status}, {left} parts left")
    click.echo("| process | MiB after a fifth | MiB at the end | MiB a minute |")
    click.echo("|---|---:|---:|---:|")
    leaks = []
    for kind, points in sorted(samples.items()):
        warm = [point for point in points if point[0] >= 12 * minutes]
        if len(warm) < 10 or kind in ("other", "IDLE", "assemble"):
            continue
        times, sizes = np.array(warm).T
        slope = 60 * np.polyfit(times, sizes, 1)[0]
        first, last = np.median(sizes[:5]), np.median(sizes[-5:])
        click.echo(f"| {kind} | {first:.0f} | {last:.0f} | {slope:+.2f} |")
        if last > first * (1 + MAX_GROWTH) and last > first + SLACK:
            leaks.append(kind)
    if leaks:
        sys.exit(f"memory is not flat: {', '.join(leaks)}")
    click.echo(f"flat: no kind of process grew by more than {MAX_GROWTH:.0%} and {SLACK} MiB")


if __name__ == "__main__":
    main()
