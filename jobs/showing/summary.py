"""Describes a plan, a finished run, and an output at any time: in lines for people, in mappings for programs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from promptmill.configs.drafts import in_words
from promptmill.configs.errors import nearest
from promptmill.jobs.figures.ranked import Ranked, ranked_lines
from promptmill.jobs.planning.estimate import Estimate
from promptmill.jobs.planning.plan import Plan, read_plan
from promptmill.jobs.showing.progress import Tally, duration
from promptmill.manifests.requests import KNOWN_COLUMNS
from promptmill.pipelines.work.units import PASS
from promptmill.shards.commits import read_records
from promptmill.shards.index import SUCCESS, Totals, total
from promptmill.shards.lease import Holder, holder_of
from promptmill.shards.storage import join, names

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.tuning import Tuned


def plan_lines(plan: Plan, estimate: Estimate | None) -> Iterator[str]:
    """Yield a plan as lines for a person."""
    counts = plan.counts
    bad = f", {counts.bad:,} of them bad and to be recorded as failed" if counts.bad else ""
    yield f"rows         {counts.rows:,}{bad}"
    modes = ", ".join(f"{mode} {number:,}" for mode, number in counts.modes.items())
    yield f"requests     {counts.requests:,} ({modes})"
    yield f"images       {counts.candidates:,} candidates, at most {counts.keep:,} kept"
    if counts.maps:
        made = ", ".join(f"{name} {number:,}" for name, number in counts.maps.items())
        yield f"maps         at most {made}, by annotators"
    yield f"units        {counts.units:,} in {many(counts.buckets, 'bucket')} and {many(plan.shards, 'shard')}"
    if plan.carried:
        # A misspelled column is carried like any other, so carried columns are shown with the known column that is nearest.
        yield f"carried      {', '.join(f'{name}{nearest(name, KNOWN_COLUMNS)}' for name in plan.carried)}"
    yield from _ranking_lines(plan)
    if estimate:
        alone = duration(estimate.seconds)
        here = duration(estimate.seconds / estimate.generators)
        apart = "" if estimate.generators == 1 else f"; {alone} on one generator alone"
        yield f"time         about {here} on this machine with {many(estimate.generators, 'generator')}, start-up apart{apart}"
        yield f"disk         about {size(estimate.disk)}"
    yield f"fingerprint  {plan.fingerprint[:16]}"


def _ranking_lines(plan: Plan) -> Iterator[str]:
    counts, ranking = plan.counts, plan.config.ranking
    if counts.growing:
        unlike = " and are unlike each other" if ranking.diversity else ""
        requests = many(counts.growing, "request")
        yield f"growing      {requests} until enough reach a score{unlike}; candidates and price are the most"
    price = f"{counts.evaluations:,} evaluations of the denoiser"
    if counts.cached:
        price += f", {100 * counts.cached / max(1, counts.evaluations):.0f}% of them by the step cache"
    if ranking.drafts:
        yield f"drafts       {in_words(ranking.drafts)}"
        price += f", {100 * counts.evaluations / max(1, counts.undrafted):.0f}% of the price without drafts"
    if plan.config.stages:
        yield f"stages       {', then '.join(stage.name for stage in plan.config.stages)}, of the kept images"
        price += (
            ""
            if not counts.staged
            else f"; {counts.staged:,} of these for stages, as much as {counts.staged_alike:,} at the rows' own size"
        )
    if (captions := plan.config.captions) is not None:
        yield f"captions     of the kept images, by {captions.model.source}, of {captions.max_tokens} tokens at most"
    yield f"price        {price}"
    yield from (f"warning      {line}" for line in warnings(plan))
    yield from (f"note         {line}" for line in plan.notes)


def warnings(plan: Plan) -> Iterator[str]:
    """Yield warnings of allowed settings that a person should know of."""
    if plan.config.ranking.drafts and plan.config.ranking.drafts_stochastic:
        yield "ranking.drafts_stochastic: drafts by samplers that add noise of their own may say little of their finals"


def accepted_lines(plan: Plan) -> Iterator[str]:
    """Yield for a person the changes since the plans whose committed shards stay."""
    if plan.rerender:
        rows = sum(len(some.numbers) for some in plan.rerender)
        yield f"{many(rows, 'committed row')} in {many(len(plan.rerender), 'shard')} {'is' if rows == 1 else 'are'} rendered again"
    for fingerprint, changes in plan.accepted.items():
        yield f"shards of plan {fingerprint[:16]} stay as they are{', but for these rows' if plan.rerender else ''}; since then:"
        yield from (f"  {change}" for change in changes)


def tuned_lines(tuned: "Tuned") -> Iterator[str]:
    """Yield for a person the batch sizes that --tune tried."""
    for trial in tuned.trials:
        memory = f", {size(trial.memory)}" if trial.memory else ""
        said = "does not fit into memory" if trial.images_s is None else f"{trial.images_s:.2f} images/s at few steps{memory}"
        yield f"batch {trial.batch:<6} {said}{'  <- pays' if trial.batch == tuned.batch else ''}"


def plan_facts(plan: Plan, estimate: Estimate | None) -> dict[str, Any]:
    """Return a plan as a mapping for a program."""
    facts = {**asdict(plan.counts), "shards": plan.shards, "fingerprint": plan.fingerprint, "notes": list(plan.notes)}
    return {**facts, "estimate": asdict(estimate) if estimate else None}


def run_lines(totals: Totals, tally: Tally, output: str, ranked: Ranked | None = None) -> Iterator[str]:
    """Yield a finished run as lines for a person: counts, the gain by ranking, times, and where to look."""
    failed = f", {totals.failed:,} failed ({_errors(tally.errors)})" if totals.failed else ""
    kinds = f"{totals.kept:,} kept, {totals.rejected:,} rejected{_rare(totals)}{failed}"
    yield f"{many(totals.requests, 'row')}, {totals.candidates:,} candidates: {kinds}"
    if totals.failed_requests:
        yield f"{many(totals.failed_requests, 'row')} without an image; see status and error in {output}/metadata"
    if tally.best is not None:
        mean, rest = tally.scores / max(1, tally.scored), f" of the {tally.scored:,} rendered now" if tally.before else ""
        yield f"CLIP scores  worst {tally.worst:.1f}, mean {mean:.1f}, best {tally.best:.1f}{rest}"
    if ranked is not None:
        yield from ranked_lines(ranked)
    if tally.rendered:
        yield f"time         {', '.join(f'{name} {duration(spent)}' for name, spent in tally.seconds().items())}"
        whole = sum(tally.stages.values()) or 1.0
        shares = ", ".join(f"{name} {100 * spent / whole:.0f}%" for name, spent in tally.stages.items() if spent / whole >= 0.005)
        yield f"spent        {shares} of {duration(whole)} in actors"
    yield f"shards       {output}/data ({many(totals.shards, 'shard')}, {size(totals.bytes)})"
    yield f"metadata     {output}/metadata, a row for each candidate"
    yield f"card         {output}/README.md says how to load it; `promptmill verify {output}` checks every byte"


def _rare(totals: Totals) -> str:
    return "".join(f", {number:,} {name}" for name, number in totals.rare.items())


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{code} {number:,}" for code, number in sorted(errors.items())) or "in earlier runs"


@dataclass(frozen=True)
class Status:
    """Holds the state of an output, by its plan and its records alone.

    Attributes:
        finished: Whether the output has its _SUCCESS.
        units: Parts of shards that are not committed.
        totals: Counts over the committed shards.
        writer: The process that writes the output right now, if any.
        rerender: Committed rows that were edited and are to be rendered again.
    """

    plan: Plan
    finished: bool
    units: int
    totals: Totals
    writer: Holder | None = None
    rerender: int = 0


def status(output: str) -> Status | None:
    """Return the state of an output: done, failed and left; None where nothing was planned.

    Raises:
        PlanError, CommitError: The plan or a record is broken.
    """
    plan = read_plan(output)
    if plan is None:
        return None
    records = read_records(output)
    committed = {f"{record.shard:06d}" for record in records}
    parts = Counter(name.split("-")[0] for name in names(join(output, "parts")) if PASS not in name)
    waiting = sum(number for shard, number in parts.items() if shard not in committed)
    edited = sum(len(plan.rerenders(record.shard, record.generation)) for record in records)
    return Status(plan, SUCCESS in set(names(output)), waiting, total(records), holder_of(output), edited)


def status_lines(status: Status) -> Iterator[str]:
    """Yield a status as lines for a person."""
    counts, totals = status.plan.counts, status.totals
    if status.writer is not None:
        yield f"being written by {status.writer}"
    else:
        yield "finished" if status.finished else "not finished: `promptmill run` with the same config goes on"
    yield f"shards       {totals.shards:,} of {status.plan.shards:,} committed"
    yield f"rows         {totals.requests:,} of {counts.rows:,} settled, {totals.failed_requests:,} of them without an image"
    kinds = f"{totals.kept:,} kept, {totals.rejected:,} rejected{_rare(totals)}, {totals.failed:,} failed"
    yield f"candidates   {totals.candidates:,} of {counts.candidates:,}: {kinds}"
    if status.units:
        yield f"units        {status.units:,} of {counts.units:,} are durable besides, in shards under way"
    if status.rerender:
        yield f"edited       {many(status.rerender, 'committed row')} to be rendered again"
    yield f"bytes        {size(totals.bytes)}"


def status_facts(status: Status) -> dict[str, Any]:
    """Return a status as a mapping for a program."""
    plan = {"shards": status.plan.shards, **asdict(status.plan.counts)}
    writer = str(status.writer) if status.writer else None
    done = {
        "done": totals_facts(status.totals),
        "units_waiting": status.units,
        "being_written_by": writer,
        "to_rerender": status.rerender,
    }
    return {"finished": status.finished, "plan": plan, **done}


def totals_facts(totals: Totals) -> dict[str, int]:
    """Return the totals of a dataset, for a program."""
    return {**asdict(totals), "candidates": totals.candidates}


def many(number: int, what: str) -> str:
    """Return a number with its noun: 1 shard, 2 shards."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def size(bytes_: float) -> str:
    """Return a number of bytes as people read it: 12 B, 3.4 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if bytes_ < 1000 or unit == "TB":
            return f"{bytes_:,.0f} {unit}" if unit == "B" or bytes_ >= 100 else f"{bytes_:,.1f} {unit}"
        bytes_ /= 1000
    raise AssertionError
