"""Verifies an output, makes again what is wrong with it, and says how that ended."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from rich.console import Console

from promptmill.configs.schema import Config
from promptmill.jobs.running.repair_note import Cleared, remembered
from promptmill.jobs.showing import summary
from promptmill.jobs.showing.exit_statuses import FAILED, SOME_FAILED
from promptmill.jobs.showing.shown_run import rendered
from promptmill.jobs.verifying.image_places import Given
from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.repair import clear, differing
from promptmill.jobs.verifying.repair_limits import repairable
from promptmill.jobs.verifying.verify import Verified, verify
from promptmill.shards.lease import hold

Say = Callable[[str], None]


@dataclass(frozen=True)
class Mended:
    """Holds how a repair ended.

    Attributes:
        status: The exit status; 0 where nothing is wrong any more.
        lines: What was done.
        left: What is still wrong, and why.
    """

    status: int = 0
    lines: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def mend(
    output: str,
    given: Given,
    address: str | None,
    console: Console | None,
    ready: Callable[[Config, str], AbstractContextManager[object]],
    say: Say,
) -> Mended:
    """Verify an output, and make again what is wrong with it.

    Args:
        output: The dataset's URI.
        given: Where the images of rows may lie now.
        address: Of the Ray cluster to render on; None for this machine.
        console: The terminal to draw on.
        ready: Starts or joins the cluster to render on.
        say: Told each thing that is wrong.

    Raises:
        PlanError, StorageError, LeaseError: As `jobs.verifying.repair.clear` and `hold`; and whatever a run raises.
    """
    with ExitStack() as rendering:
        with hold(output):
            found = found_wrong(output, say)
            if not found and not remembered(output).shards:
                return Mended()
            work = repairable(output, found, given, address)
            if work.again:
                # Found to answer, and to have room, while all is there.
                rendering.enter_context(ready(work.plan.config, output))
            cleared = clear(output, work.problems, work.left)
        if cleared.shards or not all(problem.surplus for problem in work.problems):
            # What was cleared away is rendered, and nothing else that is missing.
            status = rendered(work.plan, output, console, generations=cleared.shards)
            if status not in (0, SOME_FAILED):
                return Mended(status)
    wrong = found_wrong(output, say)
    many = f"{output}: {summary.many(len(wrong), 'problem')} left"
    if wrong and not work.left:
        return Mended(FAILED, (), (many,))
    if lines := differing(output, cleared):
        return Mended(FAILED, (), tuple(lines))
    done = (_words(cleared),)
    if work.left:
        return Mended(FAILED, done, (*(f"{why}; left as it is" for why in work.left.values()), many))
    return Mended(0, done)


def found_wrong(output: str, say: Say) -> list[Problem]:
    """Verify an output, and say each thing that is wrong with it, or that nothing is."""
    started = time.monotonic()
    found = []
    for problem in verify(output):
        if not isinstance(problem, Verified):
            say(str(problem))
            found.append(problem)
        elif not problem.problems:
            totals, sort = problem.totals, "finished" if problem.finished else "unfinished"
            what = f"{summary.many(totals.shards, 'shard')}, {summary.many(totals.kept, 'image')}, {summary.size(totals.bytes)}"
            say(f"{sort}, and every file is as its record says: {what} ({time.monotonic() - started:.1f} s)")
    return found


def _words(cleared: Cleared) -> str:
    if not cleared.shards:
        return "repaired: no shard had to be made again"
    same = "; of some nothing told what they were" if cleared.unknown else ", the same bytes as before"
    return f"repaired: {summary.many(len(cleared.shards), 'shard')} made again{same}"
