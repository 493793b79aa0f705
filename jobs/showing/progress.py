"""Shows how a run goes: one live line on a terminal, JSON lines everywhere else."""

import functools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from promptmill.actors.pool_sizes import Sizes
from promptmill.actors.receipts import Receipt
from promptmill.configs.errors import escaped
from promptmill.shards.commits import CommitRecord
from promptmill.shards.outcomes import OUTCOMES, Outcomes

EVERY_S = 1.0  # between JSON lines of progress


@dataclass
class Tally:
    """What has happened so far.

    Attributes:
        candidates: To be settled in the whole plan.
        settled: Of them, `before` by earlier runs.
        counts: Of this run's.
        worst, best: CLIP scores so far; `scores` their sum, over `scored` candidates.
        stages: Seconds that actors spent, by stage.
        errors: Failures of this run by code.
        began, connected, loaded, last: When the run was asked for, the cluster was there, the first generator had its model, and
            the latest unit was settled; by the monotonic clock, in seconds.
    """

    candidates: int
    before: int = 0
    counts: Outcomes = field(default_factory=Outcomes)
    shards: int = 0
    worst: float | None = None
    best: float | None = None
    scores: float = 0.0
    scored: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    connected: float | None = None
    loaded: float | None = None
    last: float | None = None

    @property
    def rendered(self) -> int:
        return self.counts.begun

    @property
    def settled(self) -> int:
        return self.before + self.counts.candidates

    @property
    def images_s(self) -> float | None:
        """Candidates a second since the first generator was ready; None before the first unit."""
        if self.loaded is None or self.last is None or not self.rendered:
            return None
        return self.rendered / max(1e-9, self.last - self.loaded)

    @property
    def eta_s(self) -> float | None:
        rate = self.images_s
        return (self.candidates - self.settled) / rate if rate else None

    def seconds(self) -> dict[str, float]:
        """Where the time went until now, by phase."""
        marks = {"starting Ray": self.began, "loading models": self.connected, "rendering": self.loaded, "publishing": self.last}
        reached = [(name, mark) for name, mark in marks.items() if mark is not None]
        ends = [mark for _, mark in reached[1:]] + [time.monotonic()]
        return {name: end - mark for (name, mark), end in zip(reached, ends, strict=True)}

    def add(self, receipt: Receipt) -> None:
        self.counts += receipt
        for code, number in receipt.errors.items():
            self.errors[code] = self.errors.get(code, 0) + number
        if receipt.scores:
            low, mean, high = receipt.scores
            number = receipt.kept + receipt.rejected
            self.scores, self.scored = self.scores + mean * number, self.scored + number
            self.worst = low if self.worst is None else min(self.worst, low)
            self.best = high if self.best is None else max(self.best, high)
        for stage, seconds in receipt.seconds.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        self.last = time.monotonic()


class Terminal:
    """A bar, images a second, the time left, kept and failed, and the best and worst score so far."""

    def __init__(self, tally: Tally, console: Console):
        self.tally = tally
        # What is said may name a file, and brackets in its name are no markup.
        words = functools.partial(TextColumn, markup=False)
        columns = (words("{task.description}"), BarColumn(), words("{task.fields[facts]}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)
        self._task: TaskID = self._progress.add_task("starting", total=max(1, tally.candidates), facts="")

    def __enter__(self) -> "Terminal":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._progress.update(self._task, description=escaped(line))

    def ready(self, sizes: Sizes) -> None:
        self.tally.connected = time.monotonic()
        self.say(f"loading {sizes.generators} generators, {sizes.scorers} scorers")

    def loaded(self) -> None:
        self.tally.loaded = self.tally.loaded or time.monotonic()
        self.say("rendering")

    def skipped(self, candidates: int) -> None:
        self.tally.before += candidates
        self._draw()

    def unit(self, receipt: Receipt) -> None:
        self.tally.add(receipt)
        self._draw()

    def shard(self, record: CommitRecord) -> None:
        self.tally.shards += 1
        self._draw()

    def progress(self, event: Mapping[str, Any]) -> None:
        """What a run elsewhere said of itself, as `JsonLines` writes it."""
        tally, scores = self.tally, (event["worst"], event["best"])
        tally.counts = Outcomes(**{name: event[name] for name in OUTCOMES if name in event})
        tally.candidates, tally.before = event["candidates"], event["settled"] - tally.counts.candidates
        (tally.worst, tally.best), tally.last = scores, time.monotonic()
        self._progress.update(self._task, total=max(1, tally.candidates))
        self._draw()

    def stopping(self, units: int) -> None:
        flight = f"{units} unit{'s' * (units != 1)} in flight"
        self.say(f"stopping: finishing {flight}; Ctrl-C again stops at once")

    def _draw(self) -> None:
        self._progress.update(self._task, completed=self.tally.settled, facts=facts(self.tally))


class JsonLines:
    """One JSON object a line, each with an `event`."""

    def __init__(self, tally: Tally, stream: TextIO | None = None):
        self.tally, self._stream, self._said = tally, stream or sys.stdout, 0.0

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def event(self, name: str, **values: Any) -> None:
        # JSON itself lets DEL stand.
        print(escaped(json.dumps({"event": name, **values})), file=self._stream, flush=True)

    def say(self, line: str) -> None:
        self.event("note", text=line)

    def ready(self, sizes: Sizes) -> None:
        self.tally.connected = time.monotonic()
        self.event("ready", **asdict(sizes))

    def loaded(self) -> None:
        if self.tally.loaded is None:
            self.tally.loaded = time.monotonic()
            self.event("loaded")

    def skipped(self, candidates: int) -> None:
        self.tally.before += candidates

    def unit(self, receipt: Receipt) -> None:
        self.tally.add(receipt)
        done = self.tally.settled >= self.tally.candidates
        if done or time.monotonic() - self._said >= EVERY_S:
            self._said = time.monotonic()
            tally = self.tally
            self.event(
                "progress",
                settled=tally.settled,
                candidates=tally.candidates,
                before=tally.before,
                **tally.counts.by_outcome,
                images_s=_rounded(tally.images_s),
                eta_s=_rounded(tally.eta_s),
                best=_rounded(tally.best),
                worst=_rounded(tally.worst),
            )

    def shard(self, record: CommitRecord) -> None:
        self.tally.shards += 1
        self.event("shard", shard=record.shard, kept=record.kept, rejected=record.rejected, failed=record.failed)

    def stopping(self, units: int) -> None:
        self.event("stopping", units=units)


def facts(tally: Tally) -> str:
    """The figures of the live line."""
    parts = [f"{tally.settled:,}/{tally.candidates:,} images"]
    if tally.images_s is not None:
        parts.append(f"{tally.images_s:.2f}/s")
    if tally.eta_s:
        parts.append(f"{duration(tally.eta_s)} left")
    parts.append(f"{tally.counts.kept:,} kept, {tally.counts.failed:,} failed{' in this run' if tally.before else ''}")
    if tally.best is not None:
        parts.append(f"score {tally.worst:.1f} … {tally.best:.1f}")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 4 h 10 min, 12 days."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 100 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 86400:,.0f} days"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
