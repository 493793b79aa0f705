"""Defines manifests that are made rather than read: a number of rows, a seed, and how each column gets its values."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from promptmill.configs.errors import describe, nearest, quoted
from promptmill.configs.parameters import MAX_PROMPT, Seed, Strict, no_boolean

MOST_ROWS = 10**10
MOST_COLUMNS = 200
MOST_CHOICES = 100_000

Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(no_boolean)]
Whole = Annotated[int, Field(ge=-(2**53), le=2**53), BeforeValidator(no_boolean)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(no_boolean)]
Digits = Annotated[int | None, Field(ge=0, le=15), BeforeValidator(no_boolean)]
Some = Annotated[tuple[Any, ...], Field(min_length=1, max_length=MOST_CHOICES)]


class Choices(Strict):
    """Declares a column whose values are chosen at random; `by` names a column whose value says among which.

    Attributes:
        choices: The values; with `by`, a mapping from each value of that column to its values.
        weights: One for each value, the more the oftener; equal where not given.
        by: Another column.
    """

    choices: Some | dict[str, Some]
    weights: tuple[Weight, ...] | None = None
    by: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Choices":
        if isinstance(self.choices, dict) != (self.by is not None):
            raise ValueError("choices are a mapping from the values of the column `by`, or a list without `by`")
        if self.weights is not None:
            if self.by is not None:
                raise ValueError("weights are for a list of choices; with `by`, repeat what is to be chosen oftener")
            if len(self.weights) != len(self.choices) or not any(self.weights):
                raise ValueError(f"weights: {len(self.weights)} for {len(self.choices)} choices; give one each, not all of them 0")
            if not math.isfinite(sum(self.weights)):
                raise ValueError("weights: are too large to be summed")
        return self


class Lines(Strict):
    """Declares a column whose values are chosen at random from the lines of a text file; empty lines and # comments are none."""

    lines: str = Field(min_length=1)


class Product(Strict):
    """Declares a column of which each value goes with each of the other such columns, all combinations repeated evenly."""

    product: Some


class Integer(Strict):
    """Declares a column of whole numbers chosen at random, from the first to the last of two."""

    integer: tuple[Whole, Whole]

    @model_validator(mode="after")
    def _in_order(self) -> "Integer":
        if self.integer[0] > self.integer[1]:
            raise ValueError(f"integer: {self.integer[0]} is above {self.integer[1]}")
        return self


class Uniform(Strict):
    """Declares a column of numbers chosen at random between two, each as likely; `digits` are kept behind the point."""

    uniform: tuple[Number, Number]
    digits: Digits = None

    @model_validator(mode="after")
    def _has_a_width(self) -> "Uniform":
        low, high = self.uniform
        if low > high:
            raise ValueError(f"uniform: {low:g} is above {high:g}")
        if not math.isfinite(high - low):
            raise ValueError(f"uniform: {low:g} and {high:g} are too far apart")
        return self


class Normal(Strict):
    """Declares a column of numbers around a mean with a standard deviation, cut to `least` and `most`."""

    normal: tuple[Number, Weight]
    least: Number | None = None
    most: Number | None = None
    digits: Digits = None


class Sequence(Strict):
    """Declares a column of whole numbers that count from a start by a step."""

    sequence: tuple[Whole, Whole]


class Constant(Strict):
    """Declares a column of one value: a list or a mapping, in which texts are templates."""

    value: Any


AnyColumn = Choices | Lines | Product | Integer | Uniform | Normal | Sequence | Constant
KINDS: Mapping[str, type[AnyColumn]] = MappingProxyType(
    {
        "choices": Choices,
        "lines": Lines,
        "product": Product,
        "integer": Integer,
        "uniform": Uniform,
        "normal": Normal,
        "sequence": Sequence,
        "value": Constant,
    }
)


def column_of(value: Any) -> AnyColumn:
    """Return the column that a value in `columns` declares: a mapping by its kind's key, anything else as a constant or a template.

    Raises:
        ValueError: The mapping declares none, or several, or is wrong in a key; the message is one line.
    """
    if not isinstance(value, dict):
        return Constant(value=value)
    kinds = [key for key in KINDS if key in value]
    if len(kinds) != 1:
        said = "is of no kind" if not kinds else f"is of several kinds, {' and '.join(kinds)}"
        hint = nearest(next(iter(value), ""), list(KINDS)) if not kinds else ""
        raise ValueError(f"{said}{hint}; give one of {', '.join(KINDS)}, or a text or number")
    kind = KINDS[kinds[0]]
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(describe(error, kind))) from None


class MadeManifest(Strict):
    """Declares a manifest that is made: row k depends on the seed and on k alone, so more rows leave those before as they are."""

    rows: int = Field(ge=1, le=MOST_ROWS)
    seed: Seed = 0
    columns: dict[str, Any] = Field(min_length=1, max_length=MOST_COLUMNS)

    @field_validator("columns")
    @classmethod
    def _declared(cls, columns: dict[str, Any]) -> dict[str, Any]:
        for name, value in columns.items():
            try:
                column = column_of(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if isinstance(column, Choices) and column.by is not None and column.by not in columns:
                raise ValueError(f"{name}: by: there is no column {quoted(column.by)}{nearest(column.by, columns)}")
            if isinstance(value, str) and len(value) > MAX_PROMPT:
                raise ValueError(f"{name}: a template has at most {MAX_PROMPT:,} characters")
        return columns
