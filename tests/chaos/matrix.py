"""The kill matrix: whoever is killed, whenever, the dataset ends as the same bytes, and few units are rendered twice.

    python -m tests.chaos.matrix                  # all, on stand-in work: some forty minutes on two cores; prints a Markdown table
    python -m tests.chaos.matrix --kills 2        # fewer kills of each kind
    python -m tests.chaos.matrix --only raylet
    python -m tests.chaos.matrix --s3             # the output on S3 (moto's server) behind a proxy that fails 5% of the requests

Kinds of kill, each a SIGKILL at a random moment: the driver, a generator, a scorer (which writes the parts), a task that assembles
and commits, a raylet of a two-node cluster with all that runs on it. Then a driver again and again in one run; and a scorer and a
task before each of their first operations on files, or requests to S3.
"""

import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from promptmill.actors.local_ray.processes import few_processes
from tests.chaos.faulty_s3 import FaultyS3, faulty_s3
from tests.chaos.site import HERE, Site, kill_one, never_torn, plan, problems, published, workers

UNITS, GENERATORS, SECONDS = 24, 2, 0.25  # SECONDS a unit takes; a generator works on two at once
ASSEMBLING = 0.4  # seconds that a shard's assembly takes longer where it is killed at random
# Units that may be rendered twice: of a generator those in flight on it, of a scorer the one on it; of a driver and a raylet all
# in flight, on generators (two each), waiting for a scorer (four), and on it.
BOUNDS = {"generator": 2, "scorer": 1, "assembler": 0, "driver": 2 * GENERATORS + 5, "raylet": 2 * GENERATORS + 5}
STEPS = {"scorer": 8, "assembler": 40}  # operations on files: two parts; a shard and some of the next
REQUESTS = {"scorer": 4, "assembler": 12}  # likewise, to S3
TITLES = {"generator": "ray::Generator", "scorer": "ray::Scorer", "assembler": "ray::assemble_shard"}


@dataclass
class Row:
    """What kills of one kind did: units rendered twice and seconds more than the calm run, of each."""

    kind: str
    bound: int
    lost: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    missed: int = 0

    def line(self) -> str:
        lost = f"{statistics.mean(self.lost):.1f}, {max(self.lost):.1f}" if self.lost else "-"
        seconds = f"{statistics.mean(self.seconds):+.1f}" if self.seconds else "-"
        same = f"{len(self.lost) - len(self.wrong)} of {len(self.lost)}"
        if self.missed:
            same += f" ({self.missed} more met nobody)"
        return f"| {self.kind} | {len(self.lost)} | {lost} | {self.bound} | {seconds} | {same} |"


HEAD = (
    "| killed | kills | units rendered twice: mean, most | allowed | seconds more | the same bytes |",
    "|---|---:|---:|---:|---:|---:|",
)


class Calm:
    """The undisturbed run that the others are held to, on a cluster of one or two nodes.

    Args:
        folder: Where everything lies.
        units: Of the plan.
        storage: Where the outputs lie instead.
        timed: The run is on the cluster, and its seconds are taken; else its workers are in the driver, which is sooner done.
    """

    def __init__(self, folder: Path, units: int = UNITS, storage: FaultyS3 | None = None, timed: bool = True):
        from ray.cluster_utils import Cluster

        self.folder, self.units, self.storage, self.timed, self._number = folder, units, storage, timed, 0
        with few_processes(logs=False):
            self.cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 2,
                    "_system_config": {"health_check_period_ms": 500, "health_check_failure_threshold": 2},
                },
            )
        self.template = plan(folder, units)
        site, self.seconds = self.site(), 0.0
        if timed:
            site.finish()  # the first start of everything is slow
            site, began = self.site(), time.monotonic()
            site.finish()
            self.seconds = time.monotonic() - began
        else:
            site.address = HERE
            site.finish("--seconds", "0")
        self.bytes = published(site.out)
        assert not problems(site.out), problems(site.out)

    def site(self, *options: str) -> Site:
        self._number += 1
        options = ("--generators", str(GENERATORS), "--seconds", str(SECONDS), *options)
        bucket = self.storage and self.storage.bucket
        return Site.of(self.template, self.folder / f"site-{self._number:04d}", self.cluster.address, *options, bucket=bucket)

    def join(self) -> Any:
        """Add a node to the cluster; return it."""
        with few_processes(logs=False):
            return self.cluster.add_node(num_cpus=2)

    @property
    def rendering(self) -> float:
        """Seconds of a calm run during which units are rendered; the rest is starting."""
        return self.units * SECONDS / (2 * GENERATORS)

    def close(self) -> None:
        self.cluster.shutdown()

    def trial(self, row: Row, site: Site, attack: Callable[[int], bool]) -> None:
        """One run under attack, resumed until it ends; what came of it goes into the row, if the attack met anybody."""
        hit = []
        began = time.monotonic()
        with never_torn(site.out, row.wrong):
            ended = site.run(attack=lambda pid: hit.append(attack(pid)))
            if ended.status != 0:
                site.finish()
        spent = time.monotonic() - began
        if not any(hit) and not site.fired:
            row.missed += 1
            return
        self._take(row, site, spent)

    def _take(self, row: Row, site: Site, spent: float) -> None:
        row.seconds.append(spent - self.seconds)
        row.lost.append((site.rendered() - 3 * self.units) / 3)
        if published(site.out) != self.bytes or problems(site.out):
            row.wrong.append(site.out)
        if row.lost[-1] > row.bound:
            row.wrong.append(f"{site.out}: {row.lost[-1]} units rendered twice")

    def random_kills(self, kind: str, number: int, seed: int = 0) -> Row:
        row, rng = Row(kind, BOUNDS[kind]), random.Random(f"{kind}{seed}")
        while len(row.lost) < number and row.missed < 8 * number:
            # A task that takes no longer than the look for its process would mostly be over before it is found.
            site = self.site(*(("--assembling", str(ASSEMBLING)) if kind == "assembler" else ()))
            self.trial(row, site, self._attack(kind, rng))
        return self._met(row, number)

    def _met(self, row: Row, number: int) -> Row:
        """The row, which is wrong where fewer kills than wanted met anybody."""
        if len(row.lost) < number:
            row.wrong.append(f"{row.kind}: {len(row.lost)} kills of {number} met anybody")
        return row

    def _attack(self, kind: str, rng: random.Random) -> Callable[[int], bool]:
        pause, later = rng.uniform(0, self.rendering), rng.uniform(0, ASSEMBLING) if kind == "assembler" else 0.0

        def attack(driver: int) -> bool:
            time.sleep(pause)
            if kind != "driver":
                # Behind a storage that fails requests the first shard may be long in coming.
                return kill_one(TITLES[kind], os.getpid(), rng, 5 if self.storage is None else 30, later)
            try:
                os.kill(driver, signal.SIGKILL)
            except ProcessLookupError:
                return False
            return True

        return attack

    def raylet_kills(self, number: int, seed: int = 0) -> Row:
        """Kills of the second node's raylet; a new node comes for each."""
        row, rng = Row("raylet", BOUNDS["raylet"]), random.Random(seed)
        while len(row.lost) < number and row.missed < 8 * number:
            node = self.join()
            pause = rng.uniform(0, self.rendering)

            def attack(driver: int, node: object = node, pause: float = pause) -> bool:
                time.sleep(pause)
                raylets = [info.process.pid for info in node.all_processes["raylet"]]  # type: ignore[attr-defined]
                met = any(workers(title, raylet) for title in TITLES.values() for raylet in raylets)
                for raylet in raylets:
                    os.kill(raylet, signal.SIGKILL)
                return met

            self.trial(row, self.site(), attack)
            self.cluster.remove_node(node, allow_graceful=False)
        return self._met(row, number)

    def stops(self, number: int, seed: int = 0) -> Row:
        """One run of a larger plan, stopped so many times at random: interrupted, terminated or killed, and each time resumed."""
        row, rng = Row(f"driver, stopped {number} times in one run", number * BOUNDS["driver"]), random.Random(seed)
        larger = Calm.__new__(Calm)
        larger.folder, larger.units, larger.cluster, larger._number = self.folder / "larger", 6 * number + 12, self.cluster, 1000
        larger.storage, larger.timed = self.storage, self.timed
        larger.folder.mkdir()
        larger.template = plan(larger.folder, larger.units)
        calm, site = larger.site(), larger.site()
        began = time.monotonic()
        calm.address = calm.address if self.timed else HERE
        calm.finish(*(() if self.timed else ("--seconds", "0")))
        larger.seconds, larger.bytes = time.monotonic() - began, published(calm.out)
        began, stopped = time.monotonic(), 0

        def attack(driver: int) -> None:
            time.sleep(rng.uniform(0, 0.6))
            os.kill(driver, rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))

        while stopped < number and site.run(attack=attack).status != 0:
            stopped += 1
        site.finish()
        row.kind = f"driver, stopped {stopped} times in one run of {larger.units} units"
        larger._take(row, site, time.monotonic() - began)
        return row

    def step_kills(self, role: str, every: int = 1) -> Row:
        """Kills before each of the first operations on files (or requests to S3) of a process, or before every so many-th."""
        what, steps = ("operations on files", STEPS[role]) if self.storage is None else ("requests to S3", REQUESTS[role])
        row = Row(f"{role}, before each of {steps} {what}", BOUNDS[role])
        for step in range(1, steps + 1, every):
            site = self.site()
            site.options += ("--die", role, str(step), "--under", site.out)
            self.trial(row, site, lambda pid: False)
        return self._met(row, len(range(1, steps + 1, every)))


@click.command()
@click.option("--kills", default=10, show_default=True, help="Of each kind, at random moments.")
@click.option("--only", type=click.Choice([*BOUNDS, "stops", "steps"]), multiple=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--s3", is_flag=True, help="With the output on S3 that fails requests.")
@click.option("--share", default=0.05, show_default=True, help="Of the requests to S3, how many fail.")
def main(kills: int, only: tuple[str, ...], seed: int, s3: bool, share: float) -> None:
    """Kill whatever can be killed."""
    with tempfile.TemporaryDirectory() as name, faulty_s3(share, seed) if s3 else nullcontext() as storage:
        calm = Calm(Path(name), storage=storage)
        click.echo(f"{UNITS} units of 3 requests, {GENERATORS} generators; the calm run took {calm.seconds:.1f} s")
        click.echo("\n".join(HEAD))
        wrong = []
        for kind in only or (*BOUNDS, "stops", "steps"):
            if kind == "steps":
                rows = [calm.step_kills(role) for role in ("scorer", "assembler")]
            elif kind == "stops":
                rows = [calm.stops(2 * kills, seed)]
            else:
                rows = [calm.raylet_kills(kills, seed) if kind == "raylet" else calm.random_kills(kind, kills, seed)]
            for row in rows:
                click.echo(row.line())
                wrong += row.wrong
        if storage is not None:
            click.echo(f"{storage.proxy.faults.total()} of {storage.proxy.requests.total()} requests failed: {storage.said()}")
        calm.close()
    click.echo("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
