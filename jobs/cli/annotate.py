"""Declares the command `annotate`."""

import re
import sys

import click

from promptmill.configs.loading import load
from promptmill.configs.printing import echo
from promptmill.jobs.cli.arguments import number_of_workers, progress_of, terminal
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import absolute, without_credentials
from promptmill.jobs.showing.exit_statuses import SOME_FAILED, USAGE
from promptmill.jobs.showing.summary import many


@click.command()
@click.argument("manifest")
@click.option("--as", "maps", metavar="NAMES", required=True, help="The maps, as depth,canny(low=50): names of preprocessors.")
@click.option("--to", metavar="URI", required=True, help="Where the dataset of maps goes.")
@click.option("--config", metavar="CONFIG", help="Whose model.annotators make the maps that need a model.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Override a key of the config; repeatable.")
@click.option("--size", metavar="WxH", help="Of pictures and maps, in pixels.  [default: that of each picture]")
@click.option("--shard-size", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Pictures a shard.")
@click.option("--workers", metavar="N", default="1", show_default=True, help="Processes that make maps; auto: as many as fit here.")
def annotate(
    manifest: str,
    maps: str,
    to: str,
    config: str | None,
    settings: tuple[str, ...],
    size: str | None,
    shard_size: int,
    workers: str,
) -> None:
    """Make a dataset of control maps of the pictures that MANIFEST names, or go on with one. Nothing is rendered."""
    from promptmill.jobs.annotating.annotating import annotate as made_of
    from promptmill.jobs.annotating.inputs import Wanted, look, parse_maps

    with one_line_errors():
        if settings and config is None:
            stop(USAGE, "--set: overrides a key of a config; give one as --config")
        sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size) if size else None
        if size and not sides:
            stop(USAGE, f"--size {size!r:.40}: write it as 512x512, width and height in pixels")
        number = number_of_workers(workers)
        wanted = Wanted(parse_maps(maps), (int(sides[1]), int(sides[2])) if sides else None, shard_size)
        loaded = load(config, [f"manifest={without_credentials(manifest)}", *settings]) if config else None
        inputs, output = look(without_credentials(manifest), wanted, loaded), absolute(to)
        with progress_of(terminal(), "annotating") as progress:
            done = made_of(inputs, output, progress, number)
        echo(f"{many(done.kept, 'picture')} with {', '.join(wanted.preprocess)} in {output}")
        if done.failed:
            echo(f"{many(done.failed, 'row')} without a picture; see status and error in {output}/metadata", err=True)
            sys.exit(SOME_FAILED)
