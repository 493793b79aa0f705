"""Draws the images of sweeps as labelled plots: a column across, one down, and one from plot to plot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from promptmill.configs.errors import nearest, quoted
from promptmill.jobs.showing.contact_sheet import GAP, LETTERS, LINE, TILE, SheetError
from promptmill.jobs.showing.lettering import Lettering
from promptmill.manifests.sweeps import OF
from promptmill.shards.commits import CommitError
from promptmill.shards.finished import shards

SIDE = 120  # pixels, of the labels at the left
MOST = 40  # values along one axis


class GridError(ValueError):
    """Reports axes that cannot be drawn; the message is one line."""


@dataclass(frozen=True)
class Axes:
    """Holds the columns of a plot: across, down, and from plot to plot; None where there is none."""

    x: str
    y: str | None = None
    z: str | None = None


@dataclass(frozen=True)
class Cell:
    """Holds the best kept image of one cell, RGB, with its score."""

    image: Image.Image
    score: float | None


@dataclass(frozen=True)
class Plot:
    """Holds one plot: the words above it, its labels across and down, and its cells by their labels."""

    title: str
    across: Sequence[str]
    down: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]


def parse_axes(text: str) -> Axes:
    """Parse `x=steps,y=guidance_scale,z=scheduler`.

    Raises:
        GridError: The text is of another form, or lacks x.
    """
    said: dict[str, str] = {}
    for part in text.split(","):
        axis, equals, column = (one.strip() for one in part.partition("="))
        if not equals or axis not in ("x", "y", "z") or not column or axis in said:
            raise GridError(f"--grid {text}: not of the form x=COLUMN,y=COLUMN,z=COLUMN")
        said[axis] = column
    if "x" not in said or len({*said.values()}) < len(said):
        raise GridError(f"--grid {text}: {'the same column twice' if 'x' in said else 'lacks x'}; write x=COLUMN,y=COLUMN,z=COLUMN")
    return Axes(said["x"], said.get("y"), said.get("z"))


def plots(output: str, axes: Axes) -> Iterator[Plot]:
    """Yield the plots of a dataset: for each swept row, or each prompt where none was swept, one for each value of z.

    Raises:
        GridError: A column is not there, or has more values than can be drawn.
        SheetError: A shard's files are missing or broken.
    """
    found: dict[tuple[str, str], dict[tuple[str, str], tuple[int, Cell]]] = {}
    values: dict[str, dict[str, Any]] = {axis: {} for axis in (axes.x, axes.y, axes.z) if axis}
    try:
        for shard in shards(output):
            for one in shard.kept():
                for axis, seen in values.items():
                    if axis not in one.row:
                        raise GridError(f"--grid: no column {quoted(axis)}{nearest(axis, list(one.row))}")
                    seen[label(one.row[axis])] = one.row[axis]
                    if len(seen) > MOST:
                        raise GridError(f"--grid: {axis} has more than {MOST} values")
                at = (label(one.row[axes.x]), label(one.row[axes.y]) if axes.y else "")
                base = str(one.row.get(OF) or one.row["prompt"] or "")
                plot = found.setdefault((base, label(one.row[axes.z]) if axes.z else ""), {})
                rank = one.row["rank"] or 0
                if at not in plot or rank < plot[at][0]:
                    plot[at] = rank, Cell(one.picture(), one.row["clip_score"])
    except CommitError as error:
        raise SheetError(str(error)) from None
    placed = {axis: sorted((place(value), name) for name, value in seen.items()) for axis, seen in values.items()}
    order = {axis: [name for _, name in some] for axis, some in placed.items()}
    bases = list(dict.fromkeys(base for base, _ in found))
    for base in bases:
        for z in order[axes.z] if axes.z else [""]:
            if (base, z) in found:
                title = f"{base} · {axes.z} {z}" if axes.z else base
                cells = {at: cell for at, (_, cell) in found[base, z].items()}
                yield Plot(title, order[axes.x], order[axes.y] if axes.y else [""], cells)


def label(value: Any) -> str:
    """Return a value as a label has it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def place(value: Any) -> tuple[bool, float, str]:
    """Return the key by which values stand: numbers by size, before texts by their letters."""
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))


def grid(made: Sequence[Plot], axes: Axes, letters: Lettering | None = None) -> Image.Image:
    """Return plots one below another, each with its labels, and the score below each image.

    Args:
        made: The plots.
        axes: Their columns.
        letters: Draws the words, and then knows which letters no font has.
    """
    letters = letters or Lettering(LETTERS)
    left = SIDE if axes.y else GAP
    heights = [2 * LINE + GAP + len(plot.down) * (TILE + LINE + GAP) + GAP for plot in made]
    width = left + max(len(plot.across) for plot in made) * (TILE + GAP) + GAP
    whole = Image.new("RGB", (width, sum(heights) + GAP), "white")
    pen = ImageDraw.Draw(whole)
    top = GAP
    for plot, height in zip(made, heights, strict=True):
        letters.draw(pen, GAP, top + LINE, width - 2 * GAP, plot.title)
        for column, name in enumerate(plot.across):
            letters.draw(pen, left + column * (TILE + GAP), top + 2 * LINE, TILE, f"{axes.x} {name}")
        for line, y in enumerate(plot.down):
            at = top + 2 * LINE + GAP + line * (TILE + LINE + GAP)
            if axes.y:
                letters.draw(pen, GAP, at + TILE // 2, SIDE - 2 * GAP, f"{axes.y} {y}")
            for column, x in enumerate(plot.across):
                cell, across = plot.cells.get((x, y)), left + column * (TILE + GAP)
                if cell is None:
                    pen.rectangle((across, at, across + TILE - 1, at + TILE - 1), outline="lightgrey")
                    continue
                scale = TILE / max(cell.image.size)
                size = (max(1, round(cell.image.width * scale)), max(1, round(cell.image.height * scale)))
                whole.paste(
                    cell.image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS), (across, at)
                )
                if cell.score is not None:
                    letters.draw(pen, across, at + TILE + LINE - 3, TILE, f"{cell.score:.1f}")
        top += height
    return whole
