"""The commands that look whether a dataset is what it should be: status, verify, regenerate."""

import json
import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from promptmill.configs.printing import echo
from promptmill.configs.schema import Config
from promptmill.jobs.cli.arguments import absolute, first_given, takes_image_places, terminal, without_credentials
from promptmill.jobs.cli.endings import FAILED, SOME_FAILED, USAGE, one_line_errors, stop
from promptmill.jobs.cli.rendering import rendered
from promptmill.jobs.cli.streams import outliving_readers
from promptmill.jobs.planning.plan import Plan
from promptmill.jobs.showing import summary
from promptmill.jobs.verifying.image_places import NOTHING, Given
from promptmill.shards.lease import hold
from promptmill.shards.places_to_write import write_file
from promptmill.shards.storage import join, names

if TYPE_CHECKING:
    from promptmill.jobs.running.repair_note import Cleared
    from promptmill.jobs.verifying.problems import Problem


@click.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def status(out: str, as_json: bool) -> None:
    """What is done, failed and left, from the records alone."""
    with one_line_errors():
        without_credentials(out)
        found = summary.status(out)
        if found is None:
            stop(USAGE, f"{out}: nothing was planned there")
        if as_json:
            echo(json.dumps(summary.status_facts(found)))
            return
        for line in summary.status_lines(found):
            echo(line)


@click.command()
@click.argument("out")
@click.option("--repair", is_flag=True, help="Make damaged shards again, and no others, to the same bytes.")
@click.option("--address", help="--repair: the Ray cluster; else this machine by itself, wherever the dataset was made.")
@takes_image_places("--repair: ")
def verify(out: str, repair: bool, address: str | None, given: Given) -> None:
    """Reopen every file, check every hash, count, key and orphan. Exits with 1 where anything is wrong."""
    with one_line_errors():
        without_credentials(out)
        if not repair and (address or given != NOTHING):
            stop(USAGE, f"{'--address' if address else first_given(given)} is for --repair")
        if not any(name for folder in ("plan", "commits") for name in names(join(out, folder))):
            stop(USAGE, f"{out}: nothing was planned there")
        if not repair:
            if found := found_wrong(out):
                stop(FAILED, f"{out}: {summary.many(len(found), 'problem')}")
            return
        with outliving_readers():
            mend(absolute(out), given, address)


def mend(output: str, given: Given, address: str | None) -> None:
    """Verify an output, make again what is wrong with it, and say how that ended."""
    from promptmill.jobs.running.repair_note import remembered
    from promptmill.jobs.verifying.repair import clear
    from promptmill.jobs.verifying.repair_limits import repairable

    with ExitStack() as rendering:
        with hold(output):
            found = found_wrong(output)
            if not found and not remembered(output).shards:
                return
            work = repairable(output, found, given, address)
            if work.again:
                # Found to answer, and to have room, while all is there.
                rendering.enter_context(ready(work.plan.config, output))
            cleared = clear(output, work.problems, work.left)
        if cleared.shards or not all(problem.surplus for problem in work.problems):
            made_again(work.plan, output, cleared)
    wrong = found_wrong(output)
    many = f"{output}: {summary.many(len(wrong), 'problem')} left"
    if wrong and not work.left:
        stop(FAILED, many)
    echo(repaired(output, cleared))
    if work.left:
        stop(FAILED, *(f"{why}; left as it is" for why in work.left.values()), many)


def ready(config: Config, output: str) -> AbstractContextManager[None]:
    """The cluster to render on, started or joined; nothing where the workers are in this process."""
    if config.runtime.workers == "here":
        return nullcontext()
    # Ray takes a second to import.
    from promptmill.jobs.clusters.node_checks import joined

    return joined(config, output)


def found_wrong(output: str) -> "list[Problem]":
    """Verify an output, say each thing that is wrong with it, or that nothing is."""
    from promptmill.jobs.verifying.verify import Verified
    from promptmill.jobs.verifying.verify import verify as problems_of

    started = time.monotonic()
    found = []
    for problem in problems_of(output):
        if not isinstance(problem, Verified):
            echo(str(problem))
            found.append(problem)
        elif not problem.problems:
            totals, sort = problem.totals, "finished" if problem.finished else "unfinished"
            what = f"{summary.many(totals.shards, 'shard')}, {summary.many(totals.kept, 'image')}, {summary.size(totals.bytes)}"
            echo(f"{sort}, and every file is as its record says: {what} ({time.monotonic() - started:.1f} s)")
    return found


def made_again(plan: Plan, output: str, cleared: "Cleared") -> None:
    """Render what was cleared away, and nothing else that is missing; stops where that does not end well."""
    status = rendered(plan, output, terminal(), generations=cleared.shards)
    if status not in (0, SOME_FAILED):
        sys.exit(status)


def repaired(output: str, cleared: "Cleared") -> str:
    """How a repair ended; stops where bytes are others than they were."""
    from promptmill.jobs.verifying.repair import differing

    lines = differing(output, cleared)
    if lines:
        stop(FAILED, *lines)
    if not cleared.shards:
        return "repaired: no shard had to be made again"
    same = "; of some nothing told what they were" if cleared.unknown else ", the same bytes as before"
    return f"repaired: {summary.many(len(cleared.shards), 'shard')} made again{same}"


@click.command()
@click.argument("out")
@click.argument("key")
@click.option("--to", "file", type=click.Path(path_type=Path, dir_okay=False), help="Where the image goes; else it is not kept.")
@takes_image_places()
def regenerate(out: str, key: str, file: Path | None, given: Given) -> None:
    """Make one image again, alone, and compare it. Exits with 1 where its pixels are others. One that failed is tried again, one
    that was only drafted is made in full. Writes nothing but what --to asks for."""
    from promptmill.jobs.verifying.regenerate import regenerate as made_again

    with one_line_errors():
        without_credentials(out)
        if file is not None and not file.absolute().parent.is_dir():
            stop(USAGE, f"--to {file}: there is no folder {file.absolute().parent}")
        made = made_again(out, key, given)
        place, kept = file or key, "" if file else f"; --to FILE.{made.ending} keeps the image"
        if file is not None:
            write_file(file, made.image)
        if made.same is None:
            said = (
                "was only drafted; this is what it would have been" if made.drafted else "became an image this time; it had failed"
            )
            echo(f"{place}: {said}{kept}")
            return
        if not made.same:
            why = f": made on {made.hardware}" if made.hardware else ""
            stop(FAILED, f"{place}: not the pixels of {out}{why}{kept}")
        echo(f"{place}: the same pixels, bit for bit{kept}")
