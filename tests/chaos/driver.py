"""A driver process of stand-in work: `python -m tests.chaos.driver OUT NOTES [options]` runs the plan of OUT, as `promptmill run`.

Exits as the command does, and ends with a line of JSON: what it held in memory, and the seconds that it computed itself.
"""

import json
import resource
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from promptmill.actors.flow.workers import Workers
from promptmill.actors.pool_sizes import Sizes
from promptmill.configs.schema import Elastic
from promptmill.jobs.cli.endings import one_line_errors
from promptmill.jobs.planning.plan import PlanError, read_plan
from promptmill.jobs.running import on_ray, sites
from promptmill.jobs.showing.shown_run import rendered
from promptmill.pipelines.work import units
from tests.chaos.standin import Chaos, install


def memory() -> float:
    """Anonymous memory of this process in MiB."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(values[1]) / 1024 for values in fields if values[0] == "RssAnon:")


def watch(into: list[float]) -> None:
    while True:
        into.append(memory())
        time.sleep(1)


def let_scorers_grow(most: int) -> None:
    """Let the pool of scorers grow on one node, or in one process, which would have one scorer; they share its CPUs."""
    real_sizes, real_here = on_ray.size_pools, sites.workers_here

    def size_pools(nodes: Any, runtime: Any, threads: int) -> Sizes:
        # A node that was killed a moment ago may still be listed.
        sizes = real_sizes(nodes[:1], runtime, threads)
        return replace(sizes, most_scorers=most, scorer_cpus=sizes.scorer_cpus / most)

    def workers_here(*arguments: Any) -> Workers:
        made = real_here(*arguments)
        return replace(made, scorers=replace(made.scorers, most=most))

    on_ray.size_pools, sites.workers_here = size_pools, workers_here  # type: ignore[attr-defined]


@click.command()
@click.argument("out")
@click.argument("notes")
@click.option("--seconds", default=0.05)
@click.option("--die", nargs=2, type=(str, int), default=("", 0), help="A kind of process, and before which of its steps it dies.")
@click.option("--under", default="")
@click.option("--address", help="Of a Ray cluster.")
@click.option("--here", is_flag=True, help="The workers are in this process, without Ray.")
@click.option("--generators", default="2", help="How many, or the least and the most, as 1:4.")
@click.option("--kinds", is_flag=True, help="Each node is hardware of another kind.")
@click.option("--assembling", default=0.0, help="Seconds more that a shard's assembly takes.")
@click.option("--scoring", default=0.0, help="Seconds that a unit takes of a scorer that is the only one so far.")
@click.option("--most-scorers", default=0, help="To how many scorers the pool may grow.")
@click.option("--nodes", default=1, help="On how many nodes units are rendered before any unit is done.")
@click.option("--deadline", default=600.0)
@click.option("--retry-failed", is_flag=True)
@click.option("--uncut", is_flag=True, help="No request is cut into slices, however many its candidates.")
def main(
    out: str,
    notes: str,
    seconds: float,
    die: tuple[str, int],
    under: str,
    address: str | None,
    here: bool,
    generators: str,
    kinds: bool,
    assembling: float,
    scoring: float,
    most_scorers: int,
    nodes: int,
    deadline: float,
    retry_failed: bool,
    uncut: bool,
) -> None:
    """Run the plan of OUT."""
    if uncut:
        units.SLICE_UNITS = units.UNIT_PIXELS = 2**40
    install(Chaos(notes, seconds, *die, under, kinds, assembling, scoring, nodes))
    if most_scorers:
        let_scorers_grow(most_scorers)
    seen: list[float] = []
    threading.Thread(target=watch, args=(seen,), daemon=True).start()
    with one_line_errors():
        plan = read_plan(out)
        if plan is None:
            raise PlanError([f"{out}: nothing was planned there"])
        least, _, most = generators.partition(":")
        pool = Elastic(min=int(least), max=int(most)) if most else int(least)
        workers = "here" if here else "ray"
        runtime = {"workers": workers, "address": address, "generators": pool, "unit_deadline_s": deadline}
        config = plan.config.model_copy(update={"runtime": plan.config.runtime.model_copy(update=runtime)})
        object.__setattr__(plan, "config", config)
        status = rendered(plan, out, None, retry_failed)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"memory": seen, "cpu_s": used.ru_utime + used.ru_stime}), flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
