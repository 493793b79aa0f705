"""Writes the stats of runs (times, hosts, what failed on the way) under stats/: a line a unit, in files of a thousand."""

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict

from promptmill.actors.receipts import Receipt
from promptmill.shards.storage import join, put

LINES = 1_000  # a file; a killed driver loses at most so many


class Stats:
    """Collects the stats of one run, in memory that does not grow with the run."""

    def __init__(self, output: str):
        self._output = output
        self._began = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S.%f}"
        self._waiting: list[Receipt] = []
        self._files = 0

    def add(self, receipt: Receipt) -> None:
        self._waiting.append(receipt)

    @property
    def full(self) -> bool:
        return len(self._waiting) >= LINES

    def take(self) -> tuple[str, bytes] | None:
        """Return the file for the lines so far, and the lines; None where there are none."""
        if not self._waiting:
            return None
        lines, self._waiting = _lines(self._waiting), []
        self._files += 1
        return join(self._output, "stats", f"{self._began}-{self._files:04d}.jsonl"), lines

    def flush(self) -> None:
        taken = self.take()
        if taken:
            put(*taken)


def _lines(receipts: Sequence[Receipt]) -> bytes:
    return "".join(json.dumps(asdict(receipt)) + "\n" for receipt in receipts).encode()
