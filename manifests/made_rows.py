"""Makes the rows of a made manifest: each of its own number alone, so that a row is the same in a longer manifest."""

import bisect
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from statistics import NormalDist
from typing import Any

from promptmill.configs.errors import quoted, shown
from promptmill.configs.made_manifests import (
    AnyColumn,
    Choices,
    Constant,
    Integer,
    Lines,
    MadeManifest,
    Normal,
    Product,
    Uniform,
    column_of,
)
from promptmill.manifests.line_files import read_lines
from promptmill.manifests.rows import ManifestError, Row
from promptmill.manifests.templates import TemplateError, compiled, is_template

NAME = "manifest"  # what stands for a file's name where rows are made

# Makes a column's value of the row's number, counted from 0, and of the values of the columns that the column reads.
Maker = Callable[[int, Mapping[str, Any]], Any]


class MadeFile(str):
    """Names a manifest whose rows are made, where the name of a file is meant; the text is what messages call the manifest."""

    __slots__ = ("made",)
    made: MadeManifest

    def __new__(cls, made: MadeManifest) -> "MadeFile":
        self = super().__new__(cls, NAME)
        self.made = made
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return MadeFile, (self.made,)


def with_lines(made: MadeManifest) -> MadeManifest:
    """Return a made manifest with choices in place of files of lines, which are read.

    Raises:
        ManifestError: A file is not there, or has no line, or is too large.
    """
    columns = {}
    for name, value in made.columns.items():
        column = column_of(value)
        columns[name] = {"choices": _lines(name, column.lines)} if isinstance(column, Lines) else value
    return made.model_copy(update={"columns": columns})


def _lines(name: str, file: str) -> list[str]:
    return [line for _, line in read_lines(file, f"manifest.columns.{name}.lines: {shown(file)}")]


def identity_of(made: MadeManifest) -> str:
    """Return a text that says all that the rows depend on."""
    return made.model_dump_json()


class Rows:
    """Makes rows of a made manifest, whose files of lines were read.

    Raises:
        ManifestError: A template is none or reads no column that there is, or columns read each other in a circle.
    """

    def __init__(self, made: MadeManifest):
        self._made = made
        columns = {name: column_of(value) for name, value in made.columns.items()}
        self._every = 1  # rows in which each combination of the products comes once
        reads: dict[str, frozenset[str]] = {}
        makers: dict[str, Maker] = {}
        for name, column in columns.items():
            try:
                makers[name], reads[name] = self._maker(name, column)
            except TemplateError as error:
                raise ManifestError(f"manifest.columns.{name}: {error}") from None
        try:
            order = list(TopologicalSorter(reads).static_order())
        except CycleError as error:
            circle = " reads ".join(map(str, reversed(error.args[1])))
            raise ManifestError(f"manifest.columns: {circle}: these columns wait for each other without end") from None
        self._makers = [(name, makers[name]) for name in order]

    def values(self, number: int) -> dict[str, Any]:
        """Return the values of a row, whose number counts from 0, in the order of the columns.

        Raises:
            TemplateError: A template cannot be rendered with the row's values; the message names the column.
        """
        values: dict[str, Any] = {}
        for name, make in self._makers:
            try:
                values[name] = make(number, values)
            except TemplateError as error:
                raise TemplateError(f"{name}: {error}") from None
        return {name: values[name] for name in self._made.columns}

    def __iter__(self) -> Iterator[Row]:
        for number in range(self._made.rows):
            try:
                yield Row(NAME, number + 1, self.values(number))
            except TemplateError as error:
                yield Row(NAME, number + 1, {}, broken=str(error))

    def _maker(self, name: str, column: AnyColumn) -> tuple[Maker, frozenset[str]]:
        """Return the function that makes a column's values, and the columns that it reads."""
        drawn = self._drawn(name)
        match column:
            case Constant():
                return self._filled(column.value)
            case Product():
                every, values = self._every, column.product
                self._every *= len(values)
                return (lambda number, _: values[number // every % len(values)]), frozenset()
            case Choices():
                return self._chosen(name, column)
            case Integer():
                least, most = column.integer
                return (lambda number, _: least + int(drawn(number) * (most - least + 1))), frozenset()
            case Uniform():
                low, high = column.uniform
                return (lambda number, _: _rounded(low + drawn(number) * (high - low), column.digits)), frozenset()
            case Normal():
                return (lambda number, _: _rounded(_normal(column, drawn(number)), column.digits)), frozenset()
            case Lines():
                raise AssertionError("the lines were not read")
            case _:
                start, step = column.sequence
                return (lambda number, _: start + step * number), frozenset()

    def _drawn(self, name: str) -> Callable[[int], float]:
        """Return the function that makes a number in [0, 1) of a row's number: by a hash, so that rows depend on no other row."""
        begins = hashlib.blake2b(f"{self._made.seed}\n{name}\n".encode(), digest_size=8)

        def drawn(number: int) -> float:
            one = begins.copy()
            one.update(str(number).encode())
            return (int.from_bytes(one.digest(), "big") >> 11) / 2**53

        return drawn

    def _chosen(self, name: str, column: Choices) -> tuple[Maker, frozenset[str]]:
        drawn, by = self._drawn(name), column.by
        if isinstance(column.choices, dict):
            assert by is not None
            lists, among = column.choices, by

            def by_value(number: int, values: Mapping[str, Any]) -> Any:
                if (some := lists.get(str(values[among]))) is None:
                    raise TemplateError(f"has no choices for {quoted(str(values[among]))} of {among}")
                return some[int(drawn(number) * len(some))]

            return by_value, frozenset({among})
        some: Sequence[Any] = column.choices
        if column.weights is None:
            return (lambda number, _: some[int(drawn(number) * len(some))]), frozenset()
        ends = list(itertools.accumulate(column.weights))
        return (lambda number, _: some[bisect.bisect_right(ends, drawn(number) * ends[-1])]), frozenset()

    def _filled(self, value: Any) -> tuple[Maker, frozenset[str]]:
        """Return the function that fills the templates in a constant, however deep they lie, and the columns that these read."""
        if isinstance(value, str):
            if not is_template(value):
                return (lambda *_: value), frozenset()
            render, reads = compiled(value, self._made.columns)
            return (lambda _, values: render(values)), reads
        if isinstance(value, list | tuple):
            items = [self._filled(item) for item in value]
            makers = [make for make, _ in items]
            return (lambda *row: [make(*row) for make in makers]), frozenset().union(*(reads for _, reads in items))
        if isinstance(value, dict):
            named = {key: self._filled(item) for key, item in value.items()}
            by_key = {key: make for key, (make, _) in named.items()}
            reads = frozenset().union(*(reads for _, reads in named.values()))
            return (lambda *row: {key: make(*row) for key, make in by_key.items()}), reads
        return (lambda *_: value), frozenset()


def _rounded(value: float, digits: int | None) -> float:
    return value if digits is None else round(value, digits)


def _normal(column: Normal, share: float) -> float:
    mean, deviation = column.normal
    value = NormalDist(mean, deviation).inv_cdf(max(share, 2.0**-54)) if deviation else mean
    low = value if column.least is None else max(value, column.least)
    return low if column.most is None else min(low, column.most)
