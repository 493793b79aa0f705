"""Checks the footer of a Parquet file before any code asks pyarrow about a column chunk."""

import io
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

SIZE = 2**62  # bytes that a file without data says it has


class _AskedError(Exception):
    """Reports a request of Arrow's for data, so the footer has passed its checks."""


class _NoData(io.RawIOBase):
    """Imitates a file that has a size and gives no data."""

    def __init__(self) -> None:
        self._at = 0
        self._raised: list[_AskedError] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: SIZE}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        error = _AskedError()
        self._raised.append(error)
        raise error

    def forget(self) -> None:
        """Drop the tracebacks of the errors: Arrow keeps the errors, and these the frames of all callers."""
        for error in self._raised:
            error.__traceback__ = error.__context__ = None


def check_chunks(metadata: pq.FileMetaData) -> None:
    """Make Arrow look at every column chunk that a footer describes, in a way that raises where a chunk contradicts itself.

    `RowGroupMetaData.column` of pyarrow ends the whole process in this case, since it lets Arrow's C++ exception through.

    Raises:
        OSError, pyarrow.ArrowException: A chunk contradicts the schema or itself.
    """
    data = _NoData()
    with pa.PythonFile(data, mode="r") as nothing:
        # Arrow works out where each chunk lies before it asks for the data of the first, since it buffers ahead.
        file = pq.ParquetFile(nothing, metadata=metadata, pre_buffer=True)
        try:
            with suppress(_AskedError):
                next(file.iter_batches(row_groups=range(metadata.num_row_groups)), None)
        finally:
            data.forget()
