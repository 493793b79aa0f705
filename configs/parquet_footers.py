"""Checks the footer of a Parquet file before anybody asks pyarrow about a column chunk."""

import io
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

SIZE = 2**62  # bytes that a file without data says it has


class _AskedError(Exception):
    """Arrow asks for data, so the footer has stood its checks."""


class _NoData(io.RawIOBase):
    """A file that has a size and gives no data."""

    def __init__(self) -> None:
        self._at = 0

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
        raise _AskedError


def check_chunks(metadata: pq.FileMetaData) -> None:
    """Have Arrow look at every column chunk that a footer describes, in a way that raises where one contradicts itself.

    `RowGroupMetaData.column` of pyarrow ends the whole process there, since it lets Arrow's C++ exception through.

    Raises:
        OSError, pyarrow.ArrowException: A chunk contradicts the schema or itself.
    """
    with pa.PythonFile(_NoData(), mode="r") as nothing:
        # Arrow works out where each chunk lies before it asks for the data of the first, since it buffers ahead.
        file = pq.ParquetFile(nothing, metadata=metadata, pre_buffer=True)
        with suppress(_AskedError):
            next(file.iter_batches(row_groups=range(metadata.num_row_groups)), None)
