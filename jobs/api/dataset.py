"""Opens a dataset, finished or not, for a Python program."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from promptmill.jobs.api.errors import one_line_errors
from promptmill.jobs.planning.config_and_output import absolute
from promptmill.jobs.planning.plan import PlanError
from promptmill.jobs.showing.summary import Status, status, status_lines
from promptmill.shards import finished
from promptmill.shards.places_to_write import write_file


class Dataset:
    """Holds the place of a dataset; what it reads of it, it reads anew each time.

    Attributes:
        output: The dataset's URI.
    """

    def __init__(self, output: str):
        self.output = output

    def __repr__(self) -> str:
        return f"<promptmill dataset {self.output}>"

    def __str__(self) -> str:
        return "\n".join(status_lines(self.status()))

    def status(self) -> Status:
        """Return what is done, failed and left, from the records alone.

        Raises:
            Error: Nothing was planned there, or a record is broken.
        """
        with one_line_errors():
            found = status(self.output)
            if found is None:
                raise PlanError([f"{self.output}: nothing was planned there"])
            return found

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the metadata of the committed shards: one row a candidate, kept or not, in the order of the manifest.

        Args:
            columns: The names of those to read; None for all. docs/datasets.md says what each means.

        Raises:
            Error: A shard is not as its record says.
        """
        with one_line_errors():
            return finished.table(self.output, columns)

    def images(self, selected: bool = True) -> Iterator[tuple[str, Image.Image | None, dict[str, Any]]]:
        """Yield the key, the image and the metadata of candidates, a shard in memory at a time.

        Args:
            selected: Whether to yield the kept candidates alone. The others' images are not stored, and are None.

        Raises:
            Error: A shard is not as its record says.
        """
        with one_line_errors():
            yield from finished.images(self.output, selected)

    def verify(self) -> list[str]:
        """Reopen every file, check every hash, count, key and orphan, and return a line for each thing that is wrong."""
        from promptmill.jobs.verifying.verify import Verified, verify

        with one_line_errors():
            return [str(problem) for problem in verify(self.output) if not isinstance(problem, Verified)]

    def report(self, path: str | Path = "report.html") -> Path:
        """Write the report, one HTML file, and return its path.

        Raises:
            Error: Nothing was planned there, a record is broken, or the file cannot be written.
        """
        from promptmill.jobs.report.making import make
        from promptmill.jobs.report.page import page

        with one_line_errors():
            write_file(Path(path), page(make(self.output)))
        return Path(path)


def open_dataset(out: str | Path) -> Dataset:
    """Open the dataset at a path or a URI.

    Raises:
        Error: Nothing was planned there, or the URI holds credentials.
    """
    with one_line_errors():
        dataset = Dataset(absolute(str(out)))
    dataset.status()
    return dataset
