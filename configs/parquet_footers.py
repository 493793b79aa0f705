"""Checks the footer of a Parquet file before any code asks pyarrow about a column chunk."""

import io
from contextlib import suppress
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

SIZE = 2**62  # bytes that a file without data says it has
# How a file is opened that lies in a Python object. Arrow's own threads would read ahead in the object, and a thread that still
# held the object when Python ends would abort the process. `use_threads=False` belongs to it wherever rows are read.
IN_THIS_THREAD = MappingProxyType({"pre_buffer": False})


class _AskedError(Exception):
    """Reports a request of Arrow's for data, so the footer has passed its checks."""


class _NoData(io.RawIOBase):
    """Imitates a file that has a size and gives no data."""

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
    """Make Arrow look at every column chunk that a footer describes, in a way that raises where a chunk contradicts itself.

    `RowGroupMetaData.column` of pyarrow ends the whole process in this case, since it lets Arrow's C++ exception through. Arrow
    looks at a chunk before it asks for the chunk's data.

    Raises:
        OSError, pyarrow.ArrowException: A chunk contradicts the schema or itself.
    """
    with pa.PythonFile(_NoData(), mode="r") as nothing:
        reader = pq.ParquetFile(nothing, metadata=metadata, **IN_THIS_THREAD).reader
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                with suppress(_AskedError):
                    reader.read_row_group(group, column_indices=[column], use_threads=False)
