"""Makes several rows of one that sweeps columns over values: each combination is a row, and all have the same seeds."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from promptmill.configs.errors import nearest, quoted, shown
from promptmill.configs.parameters import MAX_CELLS, SWEPT
from promptmill.manifests.json_rows import parse_list
from promptmill.manifests.rows import Row

COLUMN, OF = "sweep", "sweep_of"  # what a row is swept over, and, in the output, the id of the row that was swept


def swept(rows: Iterable[Row], defaults: Mapping[str, Any] | None, job_seed: int) -> Iterator[Row]:
    """Yield rows, and in the place of each that sweeps columns the rows of its cells.

    A cell has the id of the row with the cell's values behind it, the row's other columns, and the column `OF`. A row without a
    seed gets the one that its first candidate would have, so that cells differ in nothing but what is swept. Rows that follow have
    the ids that they would have without cells before them.

    Args:
        rows: Rows as read.
        defaults: The sweep of rows that have none of their own.
        job_seed: The config's seed.
    """
    shifted = False  # Behind cells rows would get the numbers of others as their ids.
    for number, one in enumerate(rows, 1):
        row = one.with_id(number) if shifted else one
        if row.broken or (defaults is None and COLUMN not in row.values):
            yield row
            continue
        try:
            axes = _axes(row.values.get(COLUMN, defaults), row.values)
        except ValueError as error:
            yield row.as_broken(f"{COLUMN}: {error}")
            continue
        shifted = True
        yield from _cells(row, axes, number, job_seed)


def _axes(said: Any, values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of each column that a row is swept over."""
    if isinstance(said, str):
        try:
            said = parse_list(said)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from None
    if not isinstance(said, Mapping) or not said:
        raise ValueError("input should be columns, each with a list of values, as {steps: [10, 20]}")
    count = 1
    for name, some in said.items():
        if name not in SWEPT:
            known = f"; those are {', '.join(SWEPT)}"
            raise ValueError(f"{quoted(str(name))} is no column that can be swept{nearest(str(name), SWEPT) or known}")
        if not isinstance(some, list | tuple) or not some:
            raise ValueError(f"{name}: input should be a list of values")
        if len({json.dumps(one, default=str) for one in some}) < len(some):
            raise ValueError(f"{name}: a value is given twice")
        if values.get(name) is not None:
            raise ValueError(f"{name}: the row has a value of its own; leave one of them out")
        count *= len(some)
    if count > MAX_CELLS:
        raise ValueError(f"{count:,} cells are more than {MAX_CELLS:,}")
    return {str(name): list(some) for name, some in said.items()}


def _cells(row: Row, axes: Mapping[str, list[Any]], number: int, job_seed: int) -> Iterator[Row]:
    base = row.values.get("id")
    base = str(number) if base is None else str(base)
    rest = {name: value for name, value in row.values.items() if name != COLUMN}
    if rest.get("seed") is None and "seed" not in axes:
        rest["seed"] = shared_seed(job_seed, base)
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        named = ",".join(f"{name}={_text(value)}" for name, value in cell.items())
        yield replace(row, values={**rest, **cell, "id": f"{base}/{named}", OF: base})


def shared_seed(job_seed: int, id: str) -> int:
    """Return the seed that a request of this id has for its first candidate, where its row says none."""
    return int.from_bytes(hashlib.sha256(f"{job_seed}\n0\n{id}".encode()).digest()[:4], "big")


def _text(value: Any) -> str:
    """Return a value as a cell's id has it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return shown(text, 60)
