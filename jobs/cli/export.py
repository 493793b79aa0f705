"""Declares the command `export`."""

from pathlib import Path
from typing import Any, Literal

import click

from promptmill.configs.preprocessors import ANNOTATED, PREPROCESSORS, preprocess_name
from promptmill.configs.printing import echo
from promptmill.jobs.cli.arguments import first_given, takes_image_places
from promptmill.jobs.cli.endings import one_line_errors, stop
from promptmill.jobs.planning.config_and_output import without_credentials
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.exit_statuses import FAILED, SOME_FAILED, USAGE
from promptmill.jobs.verifying.image_places import NOTHING, Given


@click.command()
@click.argument("out")
@click.option("--pairs", type=click.Path(path_type=Path, dir_okay=False), help="Preference pairs, as .parquet or .jsonl.")
@click.option("--manifest", type=click.Path(path_type=Path, dir_okay=False), help="A second pass's manifest, .jsonl or .parquet.")
@click.option(
    "--images",
    type=click.Choice(["kept", "all", "none"]),
    help="--pairs: of kept images, of all (rejected ones are rendered again), or keys without images.  [default: kept]",
)
@click.option("--margin", type=click.FloatRange(0), help="--pairs: what the scores differ by at least.")
@takes_image_places("--images all: ")
@click.option("--as", "kind", type=click.Choice(["img2img", "control"]), help="--manifest: what images become.  [default: img2img]")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    help="--as img2img: else the second config's. --variations: the share of other noise.  [default: 0.2]",
)
@click.option("--type", "control", metavar="NAME", help="--as control: the ControlNet's type.  [default: canny]")
@click.option("--preprocess", metavar="NAME", help="--as control: how the map is made.  [default: by the type]")
@click.option("--scale", type=click.FloatRange(0, 10), help="--as control: how strongly it steers.  [default: 1]")
@click.option("--conditioning", is_flag=True, help="--manifest: keep the first pass's controls and masks, too.")
@click.option("--seeds", is_flag=True, help="--manifest: keep each image's seed; else the noise is new.")
@click.option(
    "--variations",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="--manifest: N variations of each image, by noise near to its own.",
)
@click.option("--drop", metavar="COLUMN", multiple=True, help="--manifest: leave a column to the second config; repeatable.")
def export(out: str, pairs: Path | None, manifest: Path | None, given: Given, **options: Any) -> None:
    """Write preference pairs for training, or a manifest that renders the kept images further."""
    with one_line_errors():
        if (pairs is None) == (manifest is None):
            stop(USAGE, "give one of --pairs FILE and --manifest FILE")
        without_credentials(out)
        said = {name for name, value in options.items() if value not in (None, False, ())}
        other = [f"--{NAMES.get(name, name)}" for name in sorted(said - OF_PAIRS if pairs else said & OF_PAIRS)]
        if manifest and given != NOTHING:
            other.append(first_given(given))
        if other:
            stop(USAGE, f"{other[0]} is not for {'--pairs' if pairs else '--manifest'}")
        from promptmill.jobs.sharing.row_files import ExportError

        try:
            if pairs:
                _export_pairs(out, pairs, options["images"], options["margin"] or 0.0, given)
            elif manifest:
                _export_manifest(out, manifest, options, said)
        except ExportError as error:
            stop(FAILED, str(error))


OF_PAIRS = {"images", "margin"}
NAMES = {"kind": "as", "control": "type"}
OF_KIND = {"strength": "img2img", "control": "control", "preprocess": "control", "scale": "control"}


def _export_pairs(out: str, file: Path, images: Literal["kept", "all", "none"] | None, margin: float, given: Given) -> None:
    from promptmill.jobs.sharing.preference_pairs import export_pairs, lost_words
    from promptmill.jobs.sharing.row_files import JSONL

    asked = images or ("none" if file.suffix == JSONL else "kept")
    if given != NOTHING and asked != "all":
        stop(USAGE, f"{first_given(given)} is for --images all")
    made = export_pairs(out, file, asked, margin, lambda line: echo(line, err=True), given)
    again = f"; {summary.many(made.again, 'image')} rendered again" if made.again else ""
    echo(f"{file}: {summary.many(made.pairs, 'pair')}, {summary.many(made.without, 'request')} without{again}")
    if made.different:
        why = f": made on {made.why}" if made.why else ""
        stop(FAILED, f"{file}: {summary.many(made.different, 'image')} rendered again not with the pixels that were scored{why}")
    if made.lost:
        stop(SOME_FAILED, f"{file}: without what needs them, as {lost_words(made.lost)}")


def _export_manifest(out: str, file: Path, options: dict[str, Any], given: set[str]) -> None:
    from promptmill.jobs.sharing.next_manifest import Pass, export_manifest

    variations: int = options["variations"] or 0
    if variations and (beside := sorted(given & {"kind", "conditioning", "seeds"})):
        stop(USAGE, f"--{NAMES.get(beside[0], beside[0])} is not for --variations, which have the image's own request and seed")
    kind: Literal["img2img", "control", "variations"] = "variations" if variations else options["kind"] or "img2img"
    for name in sorted(given & set(OF_KIND)):
        if OF_KIND[name] != kind and not (variations and name == "strength"):
            stop(USAGE, f"--{NAMES.get(name, name)} is for --as {OF_KIND[name]}")
    control = options["control"] or "canny"
    preprocess = options["preprocess"] or (control if control in {*PREPROCESSORS} - {*ANNOTATED} else None)
    if kind == "control" and preprocess is None:
        stop(USAGE, f"--type {control}: say how its map is made of an image, with --preprocess {'|'.join(PREPROCESSORS)}")
    try:
        preprocess = preprocess_name(preprocess or "none")
    except ValueError as error:
        stop(USAGE, f"--preprocess: {error}")
    scale = 1.0 if options["scale"] is None else options["scale"]
    strength = 0.2 if variations and options["strength"] is None else options["strength"]
    asked = options["conditioning"], options["seeds"], options["drop"], variations
    wanted = Pass(kind, strength, control, preprocess, scale, *asked)
    images = "" if variations else f", images in {file.stem}-images/"
    echo(f"{file}: {summary.many(export_manifest(out, file, wanted), 'row')}{images}")
