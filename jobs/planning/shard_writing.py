"""Writes the plans of shards one after the other, without waiting for the storage each time, and makes them durable together.

There is no plan before its plan.json, which is written last. So until then the plans of shards may be lost in any way, except those
of shards that are committed already: only these tell what is published, and a later run needs to know.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from promptmill.jobs.planning.plan import shard_uri
from promptmill.shards.storage import flush_files, is_local, put, put_unflushed

PUTS = 16  # at once, on a remote storage


class ShardWriter:
    """Writes the plans of an output's shards; `finish` makes them durable, and `close` ends the writes under way."""

    def __init__(self, output: str):
        self._output, self._local = output, is_local(output)
        self._threads = ThreadPoolExecutor(PUTS, "put-shard-plan")
        self._putting: deque[Future[None]] = deque()

    def write(self, shard: int, content: bytes, committed: bool = False) -> None:
        """Write the plan of a shard, here or in another thread. The same shard may be written again after `wait`.

        Args:
            shard: The shard's number.
            content: The content of the shard's file.
            committed: Whether the shard is published: then a power cut leaves the plan before or this one, whole.

        Raises:
            StorageError: This plan, or one before it, cannot be written.
        """
        uri = shard_uri(self._output, shard)
        if self._local:
            (put if committed else put_unflushed)(uri, content)
            return
        if len(self._putting) == PUTS:
            self._putting.popleft().result()
        self._putting.append(self._threads.submit(put, uri, content))

    def wait(self) -> None:
        """Wait until all plans that were given can be read.

        Raises:
            StorageError: A plan cannot be written.
        """
        while self._putting:
            self._putting.popleft().result()

    def finish(self, shards: Iterable[int]) -> None:
        """Wait until the given plans of these shards outlast a power cut.

        Raises:
            StorageError: A plan cannot be written.
        """
        self.wait()
        flush_files(shard_uri(self._output, shard) for shard in shards)

    def close(self) -> None:
        """Cancel the writes that have not begun, and wait for the others: afterwards nothing is written any more."""
        self._threads.shutdown(cancel_futures=True)
