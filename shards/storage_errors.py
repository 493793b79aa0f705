"""Holds the errors of storages, each one line that begins with a URI and tells no credentials."""

from collections.abc import Iterator
from contextlib import contextmanager

from promptmill.shards.credentials import without_credentials
from promptmill.shards.retries import GaveUpError


class StorageError(OSError):
    """Says that a storage is not there, refuses or fails; the message is one line that begins with the URI."""


class FolderGoneError(StorageError):
    """Says that a folder is not there any more, though it was when the writing began."""


class OddFileError(StorageError):
    """Says that a file is not read: it is a special file, or larger than it may be.

    Attributes:
        said: The reason, without the URI.
    """

    def __init__(self, uri: str, said: str):
        self.said = said
        self._made_of: tuple[object, ...] = (uri, said)
        super().__init__(f"{without_credentials(uri)}: {said}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), self._made_of  # workers send it to the driver


class TooLargeError(OddFileError, ValueError):
    """Says that a file has more bytes than it may have; nothing of it was kept.

    Attributes:
        size: Bytes that it has.
    """

    def __init__(self, uri: str, size: int, most: int):
        self.size = size
        super().__init__(uri, f"is of {size:,} bytes, more than the {most:,} that it may have")
        self._made_of = (uri, size, most)


def check_size(uri: str, size: int, most: int | None) -> None:
    """Raise TooLargeError where a file of so many bytes is larger than it may be; None for any size."""
    if most is not None and size > most:
        raise TooLargeError(uri, size, most)


@contextmanager
def naming(uri: str, absence: bool = False) -> Iterator[None]:
    """Make a StorageError of whatever goes wrong inside; with `absence`, a file that is not there stays FileNotFoundError."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # each storage's client has errors of its own, and few of them are OSErrors
        if absence and isinstance(error, FileNotFoundError):
            raise
        raise StorageError(f"{without_credentials(uri)}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, GaveUpError) and error.__cause__ is not None:
        return f"{_reason(error.__cause__)} ({error})"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # Hidden before it is cut: half a secret is no longer found, and still too much.
    return " ".join(without_credentials(words).split())[:500] or type(error).__name__
