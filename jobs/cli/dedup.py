"""Declares the command `dedup`."""

import json

import click

from promptmill.configs.printing import echo
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import absolute
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.exit_statuses import USAGE
from promptmill.shards.lease import hold
from promptmill.shards.near_duplicates import COSINE, HASH_BITS
from promptmill.shards.storage import join, names


@click.command()
@click.argument("out")
@click.option(
    "--embedding", type=click.FloatRange(-1, 1), default=COSINE, show_default=True, help="Highest cosine; 1: not compared."
)
@click.option(
    "--hash", "bits", type=click.IntRange(-1, 16), default=HASH_BITS, show_default=True, help="Bits that differ; -1: not compared."
)
@click.option("--to", metavar="URI", help="Write a copy without the near-duplicates.")
@click.option("--json", "as_json", is_flag=True, help="Say it as one JSON object.")
def dedup(out: str, embedding: float, bits: int, to: str | None, as_json: bool) -> None:
    """Find kept images that are nearly the same, and mark them in OUT/dedup.parquet. Nothing of the dataset is changed."""
    from promptmill.jobs.sharing.dedup import MARKS, Signs, copy_without, find, line_of, write_marks

    with one_line_errors():
        output = absolute(out)
        if not any(names(join(output, "commits"))):
            stop(USAGE, f"{out}: no shard is committed there")
        copy = absolute(to) if to else None
        signs = Signs(embedding if embedding < 1 else None, bits if bits >= 0 else None)
        with hold(output):
            found = find(output, signs, lambda line: echo(line, err=True))
            if copy:
                totals = copy_without(output, found, copy)
            write_marks(output, found)
        if as_json:
            echo(json.dumps(found.summary()))
            return
        echo(line_of(found))
        echo(f"marked in {output}/{MARKS}; nothing is removed" + ("" if copy else ", --to writes a copy without them"))
        if copy:
            echo(f"{summary.many(totals.kept, 'image')} in {copy}")
