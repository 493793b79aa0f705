"""Finds the sweeps of a dataset that a report shows as plots: which of the columns vary, and the best image of each cell."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptmill.configs.parameters import SWEPT
from promptmill.jobs.showing.grid import label, place
from promptmill.manifests.sweeps import OF
from promptmill.shards import finished
from promptmill.shards.commits import CommitError, CommitRecord

ROWS = 3  # swept rows that are shown
VALUES = 12  # along an axis, at most


@dataclass(frozen=True)
class SweepPlot:
    """Holds one plot: a column across, one down, and the keys of the best kept images by their labels.

    Attributes:
        title: The swept row's id, and the values of its further columns.
        x, y: The columns; `y` is empty where one column alone was swept.
        across, down: The labels.
        cells: Keys by the labels across and down.
    """

    title: str
    x: str
    y: str
    across: Sequence[str]
    down: Sequence[str]
    cells: Mapping[tuple[str, str], str]


def sweeps_of(output: str, records: Sequence[CommitRecord], columns: Sequence[str]) -> tuple[list[SweepPlot], list[str]]:
    """Return the plots of the first swept rows, and what could not be read, a line each.

    Args:
        output: The dataset's URI.
        records: The commit records of the shards that are looked at.
        columns: The columns of the metadata; without `OF` among them nothing was swept.
    """
    if OF not in columns:
        return [], []
    wanted = ["key", "rank", OF, *(name for name in SWEPT if name in columns)]
    by_row: dict[str, list[dict[str, Any]]] = defaultdict(list)
    problems = []
    for record in records:
        try:
            table = finished.shard(output, record.shard).table()
        except (CommitError, LookupError) as error:
            problems.append(str(error))
            continue
        for row in table.filter(table["selected"]).select(wanted).to_pylist():
            base = str(row[OF])  # a stranger's column may hold lists
            if row[OF] is not None and (base in by_row or len(by_row) < ROWS):
                by_row[base].append(row)
    return [plot for base, rows in by_row.items() for plot in _plots(base, rows)], problems


def _plots(base: str, rows: Sequence[Mapping[str, Any]]) -> list[SweepPlot]:
    values: dict[str, dict[str, Any]] = {}
    for name in rows[0]:
        seen = {label(row[name]): row[name] for row in rows}
        if name in SWEPT and 1 < len(seen) <= VALUES and name not in ("seed", "variation_seed"):
            values[name] = seen
    axes = sorted(values, key=lambda name: -len(values[name]))
    if not axes:
        return []
    x, y, others = axes[0], axes[1] if len(axes) > 1 else "", axes[2:]
    found: dict[str, dict[tuple[str, str], tuple[int, str]]] = defaultdict(dict)
    for row in rows:
        title = ", ".join([base, *(f"{name} {label(row[name])}" for name in others)])
        at = label(row[x]), label(row[y]) if y else ""
        best = row["rank"] or 0, str(row["key"])
        found[title][at] = min(best, found[title].get(at, best))
    across, down = (_ordered(values[name]) if name else [""] for name in (x, y))
    return [
        SweepPlot(title, x, y, across, down, {at: key for at, (_, key) in cells.items()}) for title, cells in sorted(found.items())
    ]


def _ordered(seen: Mapping[str, Any]) -> list[str]:
    return [name for _, name in sorted((place(value), name) for name, value in seen.items())]
