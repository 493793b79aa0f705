"""Checks that a manifest in any format is read as meant: rows are drawn, written as other tools write them, and read back.

    python -m benchmarks.fuzz_manifests --minutes 10

Draws rows of known and carried columns with values of many types, and writes them as jsonl, json, csv, tsv, txt, parquet or tar, in
several encodings, line ends, compressions, quotings and types, and with twists: a key twice, a second header, a byte order mark
inside, NaN, a pointer of Git LFS. Each row has to become a request with exactly the values that were meant, or be refused by file
and row in one line; a twisted row has to be refused; a plain row in UTF-8 has to be read. Then bytes are changed anywhere, after
which there may be any rows, but no other error than one line. Ends with 1 at the first finding, which hypothesis makes small.
"""

import json
import math
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import click
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from benchmarks.drawn_manifests import CARRIED, CASES, KNOWN, Case, damaged
from promptmill.configs.parameters import Defaults
from promptmill.manifests.carried import Types, cast
from promptmill.manifests.checking import Checked, check_rows
from promptmill.manifests.rules import Rules
from promptmill.manifests.sources import ManifestError, find_files

REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")

RULES = Rules(Defaults(width=64, height=64))


def read(folder: Path, case: Case) -> list[Checked] | str:
    """Read a case's file; return its rows, or the one line that refused all of it."""
    place = folder / case.name
    place.write_bytes(case.content)
    said = None
    try:
        rows = list(check_rows(find_files(str(place)), RULES))
    except ManifestError as error:
        said = str(error)
    finally:
        place.unlink()
    if said is not None:
        assert said.startswith(str(place)) and is_safe_line(said) and len(said) < 600, said
        return said
    for row in rows:
        assert row.request or row.problems
        for line in row.lines():
            assert line.startswith(f"{place}, row {row.row.number}: "), line
            assert is_safe_line(line) and len(line) < 1000, line
    return rows


def is_safe_line(text: str) -> bool:
    """Tell whether a text is one line that steers no terminal and is not reordered.

    `str.isprintable` says less: letters that are newer than Python's tables, and the spaces of other scripts, are harmless.
    """
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(c) in REORDERING for c in text)


def check_damaged(folder: Path, seen: Counter[str], case: Case) -> None:
    """Assert that a damaged file makes rows or one line."""
    found = read(folder, case)
    seen[f"damaged: {'refused whole' if isinstance(found, str) else 'rows'}"] += 1


def check(folder: Path, seen: Counter[str], case: Case) -> None:
    """Assert that each row of a case is read as meant, or refused."""
    found = read(folder, case)
    kind = case.name.removeprefix("m.")
    if isinstance(found, str):
        seen[f"{kind}: refused whole"] += 1
        assert not (case.readable and all(row is not None and is_plain(row) for row in case.meant)) or "no rows" in found, found
        return
    if not case.meant:
        return
    if case.name.startswith("m.txt") or case.readable:
        assert len(found) == len(case.meant), f"{len(found)} rows of {len(case.meant)}"
    types = Types()
    for row, meant in zip(found, case.meant, strict=True):
        seen[f"{kind}: {'read' if row.request else 'refused'}"] += 1
        if row.request is None:
            assert not (case.readable and meant is not None and is_plain(meant)), row.lines()
            continue
        assert meant is not None, f"row {row.number} had to be refused: {row.row.values}"
        compare(row, meant)
        assert types.see(row.request.carried) == [] or any("\0" in n or "\ufeff" in n for n in row.request.carried)
    for row in found:
        for name, kind_ in types.result().items():
            if row.request and row.request.carried.get(name) is not None:
                value, written = row.request.carried[name], cast(row.request.carried[name], kind_)
                back = (
                    written
                    if isinstance(value, str) and kind_ != "json"
                    else json.loads(written)
                    if isinstance(written, str)
                    else written
                )
                assert same(back, value) or (kind_ == "float64" and back == value), f"{name}: {value!r} is written as {written!r}"


def compare(row: Checked, meant: dict[str, Any]) -> None:
    """Assert that a request has exactly what was meant."""
    request = row.request
    assert request is not None
    for name, value in meant.items():
        if value is None or (isinstance(value, float) and math.isnan(value) and name not in KNOWN):
            got = request.carried.get(name)
            assert name in KNOWN or got is None, f"{name}: {got!r} of {value!r}"
        elif name in KNOWN:
            got = getattr(request, name)
            wanted = (
                whole(value) if name == "id" else value if isinstance(value, str) and isinstance(got, str) else type(got)(value)
            )
            assert got == wanted, f"{name}: {got!r} of {value!r}"
        else:
            assert same(request.carried[name], as_json(value)), f"{name}: {request.carried[name]!r} of {value!r}"
    assert set(request.carried) <= set(meant), set(request.carried) - set(meant)


def whole(value: Any) -> str:
    """Return an id as text."""
    return value if isinstance(value, str) else str(int(value))


def as_json(value: Any) -> Any:
    """Return a carried value as the output has it."""
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | timedelta) else value


def same(one: Any, other: Any) -> bool:
    """Return whether two values are the same, with their types."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def is_plain(meant: dict[str, Any]) -> bool:
    """Return whether a row has nothing in it that may be refused."""
    if "prompt" not in meant or set(meant) - {"id", "prompt", "negative_prompt", *CARRIED}:
        return False
    texts = [name for name, value in meant.items() if isinstance(value, str) and plain_text(value)]
    ints = [name for name, value in meant.items() if type(value) is int and (name == "id" or name not in KNOWN)]
    return len(texts) + len(ints) == len(meant)


def plain_text(value: str) -> bool:
    """Return whether a text is neither empty nor odd, nor like a quote behind a space."""
    return bool(value.strip()) and value.isprintable() and "\ufeff" not in value and not value.lstrip().startswith('"')


def fuzz(seconds: float, first: int = 0, say: Callable[[str], None] = lambda line: None) -> Counter[str]:
    """Draw cases for so many seconds; return how many rows were read and refused, by format.

    Raises:
        AssertionError, Exception: A finding, made small by hypothesis, which prints it.
    """
    seen: Counter[str] = Counter()
    until = time.monotonic() + seconds
    number = first
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        while time.monotonic() < until:
            for strategy, judge in ((CASES, check), (damaged(), check_damaged)):
                _draw(strategy, partial(judge, place, seen), number, until)
            number += 1
            say(f"{sum(seen.values()):,} rows and files")
    return seen


def _draw(strategy: st.SearchStrategy[Case], judge: Callable[[Case], None], number: int, until: float) -> None:
    quiet = list(HealthCheck)

    @seed(number)
    @settings(
        max_examples=100, deadline=None, database=None, suppress_health_check=quiet, print_blob=False, report_multiple_bugs=False
    )
    @given(strategy)
    def one(case: Case) -> None:
        if time.monotonic() < until:
            judge(case)

    one()


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="How long to draw.")
@click.option("--seed", "first", default=0, show_default=True, help="Of the first round.")
def main(minutes: float, first: int) -> None:
    """Draw manifests and read them until time is up, or something is read as it was not meant."""
    try:
        seen = fuzz(60 * minutes, first, lambda line: click.echo(f"\r{line}", nl=False, err=True))
    except Exception as error:
        click.echo(f"\nfinding: {type(error).__name__}: {error}", err=True)
        for note in getattr(error, "__notes__", ()):
            click.echo(note, err=True)
        sys.exit(1)
    click.echo()
    for name, number in sorted(seen.items()):
        click.echo(f"{number:>9,} {name}")


if __name__ == "__main__":
    main()
