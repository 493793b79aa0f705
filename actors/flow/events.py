"""Tells listeners of a run's events. An error of a listener ends nothing."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from promptmill.actors.pool_sizes import Sizes
from promptmill.actors.receipts import Receipt
from promptmill.configs.printing import echo
from promptmill.shards.commits import CommitRecord


class Listener(Protocol):
    """Defines the events of a run that a listener is told of."""

    def ready(self, sizes: Sizes) -> None: ...
    def loaded(self) -> None: ...
    def skipped(self, candidates: int) -> None: ...
    def unit(self, receipt: Receipt) -> None: ...
    def shard(self, record: CommitRecord) -> None: ...
    def stopping(self, units: int) -> None: ...


def on_stderr(line: str) -> None:
    """Write a line to stderr."""
    echo(line, err=True)


class Guard:
    """Calls a listener, and keeps the listener's errors away from the run. The first failure is printed, the later ones are not.

    Args:
        who: The listener's name, for the line on the failure.
        say: Writes that line; an error of `say` is dropped too.
    """

    def __init__(self, who: str, say: Callable[[str], None] = on_stderr):
        self._who, self._say, self._failed = who, say, False

    def __call__(self, call: Callable[..., object], *args: Any, **named: Any) -> None:
        try:
            call(*args, **named)
        except Exception as error:
            if not self._failed:
                self._failed = True
                reason = " ".join(str(error).split()) or "no reason given"
                with suppress(Exception):
                    self._say(f"{self._who} failed ({type(error).__name__}: {reason}); the run goes on without what is lost of it")


class Guarded:
    """Wraps a listener whose failures end nothing."""

    def __init__(self, listener: Listener, who: str, say: Callable[[str], None] = on_stderr):
        self._listener, self._tell = listener, Guard(who, say)

    def ready(self, sizes: Sizes) -> None:
        self._tell(self._listener.ready, sizes)

    def loaded(self) -> None:
        self._tell(self._listener.loaded)

    def skipped(self, candidates: int) -> None:
        self._tell(self._listener.skipped, candidates)

    def unit(self, receipt: Receipt) -> None:
        self._tell(self._listener.unit, receipt)

    def shard(self, record: CommitRecord) -> None:
        self._tell(self._listener.shard, record)

    def stopping(self, units: int) -> None:
        self._tell(self._listener.stopping, units)


@dataclass(frozen=True)
class Both:
    """Tells two listeners of every event."""

    one: Listener
    other: Listener

    def ready(self, sizes: Sizes) -> None:
        self.one.ready(sizes)
        self.other.ready(sizes)

    def loaded(self) -> None:
        self.one.loaded()
        self.other.loaded()

    def skipped(self, candidates: int) -> None:
        self.one.skipped(candidates)
        self.other.skipped(candidates)

    def unit(self, receipt: Receipt) -> None:
        self.one.unit(receipt)
        self.other.unit(receipt)

    def shard(self, record: CommitRecord) -> None:
        self.one.shard(record)
        self.other.shard(record)

    def stopping(self, units: int) -> None:
        self.one.stopping(units)
        self.other.stopping(units)
