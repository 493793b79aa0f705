"""Reads the files of a unit's images in a few threads, ahead of the thread that prepares them: a slow address delays no other."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType

from promptmill.manifests.drawings import is_inline
from promptmill.manifests.images import content_of
from promptmill.manifests.roots import IN_FILE, Roots
from promptmill.pipelines.work.units import Placed

THREADS = 8  # files that are read at a time for one unit, and that are in memory before they are decoded

Read = Callable[[str, Roots, int, bool], bytes]  # as `content_of`
Asked = tuple[str, int, bool]  # path, index of the row's file in the manifest, whether its SHA-256 is known


class ReadingAhead:
    """Reads files in the order in which they will be asked for, at most so many ahead; a context.

    The threads end with the process, so that an address that never answers holds up no exit.

    Args:
        requests: The requests whose images are read.
        roots: Where images may lie.
        threads: Files read at a time.
        read: Reads one file.
    """

    def __init__(self, requests: Sequence[Placed], roots: Roots, threads: int = THREADS, read: Read = content_of):
        self._files = [(path, one.file, column in one.images) for one in requests for column, path in _pictures(one)]
        self._roots, self._read = roots, read
        self._found: list[Future[bytes]] = [Future() for _ in self._files]
        self._door, self._begun, self._taken, self._ahead = threading.Condition(), 0, 0, threads
        # A single file is read at once where it is asked for.
        self._threads = min(threads, len(self._files)) if len(self._files) > 1 else 0

    def __enter__(self) -> "ReadingAhead":
        for _ in range(self._threads):
            threading.Thread(target=self._work, name="images", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pass(len(self._files))

    def read(self, path: str, roots: Roots, file: int = 0, known: bool = False) -> bytes:
        """Return the content of a file, as `content_of` does; files that were passed over are forgotten."""
        wanted = path, file, known
        places = range(self._taken, len(self._files)) if self._threads else ()
        place = next((place for place in places if self._files[place] == wanted), None)
        if place is None:
            return self._read(path, roots, file, known)
        self._pass(place)
        try:
            return self._found[place].result()
        finally:
            self._pass(place + 1)

    def _pass(self, place: int) -> None:
        with self._door:
            for passed in range(self._taken, place):
                self._found[passed] = Future()  # its content goes
            self._taken = place
            self._door.notify_all()

    def _next(self) -> int | None:
        """Return the place of the next file to read, once it is not too far ahead; None where there is none left."""
        with self._door:
            while (place := max(self._begun, self._taken)) < len(self._files):
                if place < self._taken + self._ahead:
                    self._begun = place + 1
                    return place
                self._door.wait()
        return None

    def _work(self) -> None:
        while (place := self._next()) is not None:
            found, (path, file, known) = self._found[place], self._files[place]
            try:
                content = self._read(path, self._roots, file, known)
            except BaseException as error:
                found.set_exception(error)
            else:
                found.set_result(content)


def _pictures(placed: Placed) -> list[tuple[str, str]]:
    """Return the images of a request that are files by themselves, each by its column, and its path.

    Of a tar the index is read first, and of a Parquet file a whole row group, which several threads would do at once.
    """
    images = ((column, path) for column, path in placed.request.images() if not column.endswith(".embedding"))
    return [(column, path) for column, path in images if IN_FILE not in path and not is_inline(path)]
