"""Declares the command `verify`."""

import click

from promptmill.configs.printing import echo
from promptmill.jobs.annotating import checking
from promptmill.jobs.cli.arguments import first_given, takes_image_places, terminal
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.cli.streams import outliving_readers
from promptmill.jobs.clusters.joining import ready
from promptmill.jobs.planning.config_and_output import absolute, without_credentials
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.exit_statuses import FAILED, USAGE
from promptmill.jobs.verifying.image_places import NOTHING, Given
from promptmill.jobs.verifying.mending import found_wrong, mend
from promptmill.shards.storage import join, names


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
        if checking.is_annotated(out):
            _verify_maps(out, repair)
            return
        if not any(name for folder in ("plan", "commits") for name in names(join(out, folder))):
            stop(USAGE, f"{out}: nothing was planned there")
        if not repair:
            if found := found_wrong(out, echo):
                stop(FAILED, f"{out}: {summary.many(len(found), 'problem')}")
            return
        with outliving_readers():
            mended = mend(absolute(out), given, address, terminal(), ready, echo)
            for line in mended.lines:
                echo(line)
            if mended.status:
                stop(mended.status, *mended.left)


def _verify_maps(out: str, repair: bool) -> None:
    if repair:
        stop(
            USAGE,
            f"{out}: a dataset of maps; delete the commits/ record of a damaged shard, and `promptmill annotate` makes it again",
        )
    found = [*checking.check(out)]
    for problem in found:
        echo(str(problem))
    if found:
        stop(FAILED, f"{out}: {summary.many(len(found), 'problem')}")
    there = checking.progress(out)
    what = f"{summary.many(there.shards, 'shard')}, {summary.many(there.kept, 'picture')} with maps"
    echo(f"{'finished' if there.finished else 'unfinished'}, and every file is as its record says: {what}")
