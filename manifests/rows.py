"""A row as it stands in its file, and what a reader says where it can make no row."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

MAX_ROW = 16 * 2**20  # characters; more is not a manifest but some other file

MAX_BLANK = 1_000_000  # empty lines in a row; more is not a manifest either

# What a reader yields: a row's columns, or what is wrong with the row.
Values = dict[str, Any] | str


class ManifestError(ValueError):
    """A manifest that cannot be read at all; the message names the file and, where there is one, the row."""


class NoRowsError(ManifestError):
    """A file of a manifest that is whole and has no rows, as writers of many parts leave behind."""


@dataclass(frozen=True)
class Row:
    """One row as it stands in its file.

    Attributes:
        file: The file's URI.
        number: Counted from 1 in its file; a header does not count.
        values: Column to value; what a file leaves empty is not in it.
        broken: What is wrong with a row that could not be read, while the rows around it can; then there are no values.
    """

    file: str
    number: int
    values: dict[str, Any]
    broken: str | None = None

    @property
    def where(self) -> str:
        """For a person at a terminal: the file with its whole place."""
        return f"{self.file}, row {self.number}"

    @property
    def name(self) -> str:
        """For what is recorded: where the file lies is nobody's business, and would make other bytes elsewhere."""
        return f"{PurePosixPath(self.file).name}, row {self.number}"
