"""Holds a row as its file has it, and the errors of readers that can make no row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

MAX_ROW = 16 * 2**20  # characters; more is not a manifest but some other file

MAX_BLANK = 1_000_000  # empty lines in a row; more is not a manifest either

# What a reader yields: a row's columns, or what is wrong with the row.
Values = dict[str, Any] | str


class ManifestError(ValueError):
    """Reports a manifest that cannot be read at all; the message names the file and, where there is one, the row."""


class RowError(ValueError):
    """Reports a row that makes no request; `problems` holds one line each, `column: what is wrong`."""

    def __init__(self, problems: list[str]):
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


class NoRowsError(ManifestError):
    """Reports a file of a manifest that is whole and has no rows, as writers of many parts leave such files."""


@dataclass(frozen=True)
class Row:
    """Holds one row as its file has it.

    Attributes:
        file: The file's URI.
        number: Counted from 1 in its file; a header does not count.
        values: Column to value; a cell that the file leaves empty is left out.
        broken: The problem of a row that could not be read, while the rows around it can; then there are no values but an id.
        notes: Remarks for a person on how the row was read, though nothing is wrong.
        picture: The path of the picture that the row was read of, in the manifest's folder, as it goes into a line; "" for others.
        images: SHA-256 that files of the row's images had when something was made of them, in hex, by column.
    """

    file: str
    number: int
    values: dict[str, Any]
    broken: str | None = None
    notes: tuple[str, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    picture: str = ""

    @property
    def where(self) -> str:
        """Return file and row for a person at a terminal: the file with its whole path."""
        return f"{self.file.rpartition('/')[0]}/{self.picture}" if self.picture else f"{self.file}, row {self.number}"

    @property
    def name(self) -> str:
        """Return file and row for records: the file without its folder, which is private and would make other bytes elsewhere."""
        return self.picture or f"{PurePosixPath(self.file).name}, row {self.number}"

    def with_id(self, number: int) -> "Row":
        """Return the row with its number through all files as its id, which is that of rows without one."""
        return self if self.values.get("id") is not None else replace(self, values={**self.values, "id": str(number)})

    def as_broken(self, problem: str) -> "Row":
        """Return the row as one that could not be read: with a problem, and of its values the id alone."""
        return replace(self, values={name: value for name, value in self.values.items() if name == "id"}, broken=problem)
