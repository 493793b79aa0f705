"""Runs a plan to its end, or goes on where an earlier run was cut off; commits and publishes what is rendered."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import get_args

from promptmill.actors.flow.actor_slots import (
    AbortError,
)
from promptmill.actors.flow.events import Guard, Listener
from promptmill.jobs.planning.accepted_changes import to_rerender
from promptmill.jobs.planning.plan import Plan, PlanError, read_plan
from promptmill.jobs.planning.shard_plans import with_shard_hashes
from promptmill.jobs.running.finishing import check_there, finish
from promptmill.jobs.running.rendering import Run
from promptmill.jobs.running.repair_note import REPAIR_NOTE, remembered
from promptmill.jobs.running.sites import site_of
from promptmill.jobs.running.stopping import Stop
from promptmill.pipelines.work.results import InfrastructureError
from promptmill.shards.commits import CommitRecord, check_plan, read_records
from promptmill.shards.generations import failed_rows
from promptmill.shards.index import INDEX, SUCCESS, Totals, total
from promptmill.shards.lease import hold
from promptmill.shards.storage import check_stays, delete, join, names


def run(
    plan: Plan,
    output: str,
    listener: Listener,
    say: Callable[[str], None] = lambda line: None,
    retry_failed: bool = False,
    generations: Mapping[int, int] | None = None,
    stop: Stop | None = None,
) -> Totals:
    """Run a plan to its end, or go on where an earlier run was cut off.

    Args:
        plan: The output's plan.
        output: The dataset's URI.
        listener: Told of every unit and shard.
        say: Told what the run is at, before there is anything to listen to.
        retry_failed: Whether the rows of committed shards that failed by infrastructure are tried again.
        generations: As in `Run`, given by a repair: exactly these shards are rendered, and index.json stays until the dataset is
            finished. Where it is not given, what a repair that was cut off has noted.
        stop: Through which another thread asks to stop; Ctrl-C and SIGTERM are heard besides, where this is the main thread.

    Returns:
        The totals of the dataset, by its commit records; but for a repair, the dataset is finished.

    Raises:
        ClusterError, ResourcesError, StartError, StoppedError: One line each.
        CommitError: What is committed there is of another plan, or a file of it has been taken away.
        PlanError: The output has another plan by now, or the plan of a shard was altered.
        LeaseError: Another run is writing there.
        AbortError: The output was taken over by another run, or it cannot be written, or too many candidates have failed.
        PartError, StorageError: Parts are broken, or the output cannot be read or written.
    """
    say = partial(Guard("saying what the run is at"), say)
    with hold(output, say) as lease, _gone_before_all_else(output):
        there = read_plan(output)
        if there is None or there.fingerprint != plan.fingerprint:
            raise PlanError([f"{output}: was planned anew while this run waited for it; run again"])
        plan = with_shard_hashes(output, plan)
        records = {record.shard: record for record in read_records(output)}
        check_plan(output, records.values(), plan.fingerprint, plan.accepted)
        again = _failed(output, plan, records.values(), say) if retry_failed else {}
        for edited in to_rerender([plan], records).values():
            again[edited.shard] = again.get(edited.shard, frozenset()) | edited.numbers
        parts = frozenset(names(join(output, "parts")))
        only, generations = generations, remembered(output).shards if generations is None else generations
        here = Run(plan, output, listener, parts, records, again, generations, only, lease, stop or Stop(), say=say)
        if here.left:
            if here.budget.spent:
                raise AbortError(here.budget.why)
            for name in (SUCCESS, INDEX) if only is None else ():
                delete(join(output, name))
            try:
                with site_of(plan, output, here.stats.flush, say) as site:
                    asyncio.run(here.render(site))
            finally:
                here.stats.flush()
        if lease.lost:
            raise AbortError(lease.why)
        last = [here.records[shard] for shard in sorted(here.records)]
        if only is not None and len(last) < plan.shards:
            delete(join(output, REPAIR_NOTE))
            return total(last)
        if only is None:  # a repair leaves what it cannot mend, and says so
            check_there(output, last)
        return finish(plan, output, last)


@contextlib.contextmanager
def _gone_before_all_else(output: str) -> Iterator[None]:
    """Raise, for an error that ends a run, one that the output was moved or deleted, where the error only follows from that."""
    try:
        yield
    except Exception:
        check_stays(output)
        raise


def _failed(output: str, plan: Plan, records: Iterable[CommitRecord], say: Callable[[str], None]) -> dict[int, frozenset[int]]:
    """Return, by shard, the rows that another try may mend; a shard of an earlier plan has none."""
    found = {record.shard: (record, failed_rows(output, record, get_args(InfrastructureError))) for record in records}
    again = {shard: rows for shard, (record, rows) in found.items() if rows and record.fingerprint == plan.fingerprint}
    if not any(rows for _, rows in found.values()):
        say(f"nothing has failed that another try may mend: {', '.join(get_args(InfrastructureError))}")
    earlier = sum(bool(rows) for _, rows in found.values()) - len(again)
    if earlier:
        say(f"{earlier} shards with failed rows were committed before changes that were accepted, and stay as they are")
    return again
