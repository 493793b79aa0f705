"""Shows at home how a job goes elsewhere: its lines of JSON become the same progress that a run on this machine shows."""

import asyncio
import signal
from contextlib import suppress
from typing import Any

from rich.console import Console

from promptmill.actors.pool_sizes import Sizes
from promptmill.configs.json_values import parse_json
from promptmill.configs.printing import echo, echo_log, log_line
from promptmill.jobs.clusters.jobs_api import Remote
from promptmill.jobs.showing.exit_statuses import FAILED, STOPPED
from promptmill.jobs.showing.progress import Tally, Terminal


class Follower:
    """Takes what a job prints, line by line.

    Args:
        console: The terminal to draw on; without one the lines go to stdout and stderr as the run itself would have put them.
    """

    def __init__(self, console: Console | None):
        self._console = console
        self._shown: Terminal | None = None

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.__exit__()

    def line(self, line: str) -> None:
        """One line of the job's log."""
        event = _event(line)
        if event is None:
            self._say(line)
        elif self._console is None:
            echo(line)
        else:
            try:
                self._draw(event)
            except (LookupError, TypeError, ValueError):
                self._say(line)  # like an event, but none of a run's own

    def _say(self, line: str) -> None:
        if self._console is not None:
            self._console.print(log_line(line), markup=False, highlight=False)
        else:
            echo_log(line, err=True)

    def _draw(self, event: dict[str, Any]) -> None:
        assert self._console is not None
        if self._shown is None:
            self._shown = Terminal(Tally(event.get("candidates", 1)), self._console).__enter__()
        shown = self._shown
        match event["event"]:
            case "note":
                shown.say(event["text"])
            case "ready":
                shown.ready(Sizes(**{name: value for name, value in event.items() if name != "event"}))
            case "loaded":
                shown.loaded()
            case "progress":
                shown.progress(event)
            case "stopping":
                shown.stopping(event["units"])
            case "done":
                shown.__exit__()
                self._shown = None


def _event(line: str) -> dict[str, Any] | None:
    """The event that a line is; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        values = parse_json(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("event"), str) else None


def follow(there: Remote, id: str, console: Console | None) -> int:
    """Show a job until it ends; returns the exit status of its run. Ctrl-C leaves it running."""

    async def shown() -> None:
        loop, work = asyncio.get_running_loop(), asyncio.current_task()
        assert work is not None
        loop.add_signal_handler(signal.SIGINT, work.cancel)
        with Follower(console) as follower:
            async for line in there.lines(id):
                follower.line(line)

    there.job(id)  # a job that is not there is said in one line
    with suppress(asyncio.CancelledError):
        asyncio.run(shown())
    job = there.job(id)
    if not job.ended:
        echo(f"left job {id} running; `promptmill job attach {id} --address {there.address}` follows it again", err=True)
        return STOPPED
    return ended(there, id)


def ended(there: Remote, id: str) -> int:
    """The exit status of a job's run: the driver's own, since Ray takes 3, done but some rows failed, for a failure."""
    job = there.job(id)
    if job.status == "STOPPED":
        return STOPPED
    if job.exit is None:
        echo(f"job {id}: {job.status.lower()}: {' '.join(job.message.split())[:500]}", err=True)
        return FAILED
    return job.exit
