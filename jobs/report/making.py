"""Makes a report: reads a dataset's records, metadata and stats, and the images to show."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from promptmill.jobs.figures.reading import Digest, read
from promptmill.jobs.figures.sampling import MOST_CANDIDATES, Sample, sample, spread
from promptmill.jobs.planning.plan import Plan, PlanError, read_hardware, read_plan
from promptmill.jobs.report.duplicates import MOST_EMBEDDINGS, MOST_HASHED, Group, Hashes, by_embedding, by_hash, equal
from promptmill.jobs.report.facts import Facts, facts_of
from promptmill.jobs.report.pictures import Images, Picked, Shown, each, picked, show
from promptmill.jobs.report.sweeps import SweepPlot, sweeps_of
from promptmill.jobs.report.times import Times, read_times
from promptmill.shards.commits import CommitRecord, read_records
from promptmill.shards.image_reader import PictureError, read_picture
from promptmill.shards.index import SUCCESS, Totals, total
from promptmill.shards.perceptual_hash import colours, phash
from promptmill.shards.storage import names
from promptmill.shards.tables import ranks_by

GROUPS = 8  # of near-duplicates that are shown
MEMBERS = 6  # of each
HASHED = 64  # pixels of a side that a JPEG is decoded to at least, where it is only hashed


@dataclass(frozen=True)
class Likeness:
    """Holds groups of images that are almost or exactly the same.

    Attributes:
        how: The comparison: `embedding`, `hash` or `pixels`.
        compared: Images compared with one another.
        groups, members: How many groups, and images in them.
        shown: The first keys of the largest groups, and how many each has.
    """

    how: str
    compared: int
    groups: int
    members: int
    shown: Sequence[tuple[Sequence[str], int]]


@dataclass(frozen=True)
class Report:
    """Holds all that the page shows.

    Attributes:
        output: The dataset's URI; a local one is absolute.
        finished: Whether the dataset has its _SUCCESS.
        totals: Counts over all committed shards.
        sample: The shards that were looked at.
        ranks: The column of the rank score; all scores of the report are of this column.
        hardware: The kind of machine that made the bits; empty where no file says.
        sweeps: Plots of the first swept rows.
        near, equal: Near-duplicates, and images that are equal pixel for pixel.
        shown: Rows by key.
        problems: What could not be read, a line each.
    """

    output: str
    plan: Plan
    finished: bool
    totals: Totals
    sample: Sample
    ranks: str
    facts: Facts
    times: Times
    hardware: Mapping[str, str]
    sweeps: Sequence[SweepPlot]
    near: Likeness
    equal: Likeness
    shown: Mapping[str, Shown]
    problems: Sequence[str]


def make(output: str, most: int = MOST_CANDIDATES) -> Report:
    """Gather the report of a dataset.

    Args:
        output: The dataset's URI; a local one is absolute, since it goes into commands.
        most: Candidates that are looked at; of a larger dataset, some shards.

    Raises:
        PlanError: The output has no plan, or the plan is broken.
        CommitError: A commit record is broken.
        StorageError: The storage fails.
    """
    plan = read_plan(output)
    if plan is None:
        raise PlanError([f"{output}: nothing was planned there"])
    records = read_records(output)
    seen = sample(records, most)
    compared = comparable(seen.records, MOST_EMBEDDINGS) if plan.embedding is not None else []
    ranks = ranks_by(plan.form)
    digests: dict[int, Digest] = {}
    problems: list[str] = []
    for record, found in zip(seen.records, read(output, seen, {record.shard for record in compared}, ranks), strict=True):
        if isinstance(found, str):
            problems.append(found)
        else:
            digests[record.shard] = found
    facts = _halved(facts_of(list(digests.values())))
    images, by_number = _formats(output, plan), {record.shard: record for record in records}
    same = _equal(list(digests.values()))
    if plan.embedding is not None:
        near = _by_embedding([digests[record.shard] for record in compared if record.shard in digests])
    else:
        near, unread = _by_hash(output, by_number, digests, comparable(seen.records, MOST_HASHED), images)
        problems += unread
    swept, unread = sweeps_of(output, seen.records, plan.form.names)
    problems += unread
    keys = {*facts.best, *facts.worst, *facts.across, *facts.failed}
    keys.update(key for plot in swept for key in plot.cells.values())
    keys.update(key for likeness in (near, same) for group, _ in likeness.shown for key in group)
    shown, unread = show(output, by_number, keys, images, ranks)
    times = read_times(output)
    return Report(
        output=output,
        plan=plan,
        finished=SUCCESS in set(names(output)),
        totals=total(records),
        sample=seen,
        ranks=ranks,
        facts=facts,
        times=times,
        hardware=_hardware(output),
        sweeps=swept,
        near=near,
        equal=same,
        shown=shown,
        problems=list(dict.fromkeys([*problems, *unread, *times.problems])),
    )


def _halved(facts: Facts) -> Facts:
    """Return facts in which, of a small dataset, no image is among both the best and the worst."""
    kept = facts.scores.kept.count if facts.scores and facts.scores.kept else 0
    best = facts.best[: max(1, kept // 2)]
    # Equal scores stand in the same order in both.
    worst = [key for key in facts.worst if key not in best]
    return replace(facts, best=best, worst=worst[: kept // 2])


def comparable(records: Sequence[CommitRecord], most: int) -> list[CommitRecord]:
    """Return shards with about `most` kept images in all, spread evenly; whole ones, since neighbours are likely alike."""
    kept = [record for record in records if record.kept]
    images = sum(record.kept for record in kept)
    return spread(kept, max(1, len(kept) * most // images)) if images > most else kept


def _formats(output: str, plan: Plan) -> Images:
    """Return a function that gives a shard's image format, which may have been another before changes were accepted."""
    known = {plan.fingerprint: plan.config.shards.image_format}

    def image_format(record: CommitRecord) -> str:
        return known.get(record.fingerprint, plan.config.shards.image_format)

    for fingerprint in plan.accepted:
        earlier = read_plan(output, fingerprint)
        if earlier is not None:
            known[fingerprint] = earlier.config.shards.image_format
    return image_format


def _by_embedding(digests: Sequence[Digest]) -> Likeness:
    vectors = [digest.embeddings for digest in digests if digest.embeddings is not None and len(digest.keys)]
    keys = [digest.keys for digest in digests if digest.embeddings is not None and len(digest.keys)]
    if not vectors:
        return Likeness("embedding", 0, 0, 0, ())
    together, names_ = np.concatenate(vectors)[:MOST_EMBEDDINGS], np.concatenate(keys)[:MOST_EMBEDDINGS]
    return _likeness("embedding", names_, by_embedding(together))


def _by_hash(
    output: str,
    records: Mapping[int, CommitRecord],
    digests: Mapping[int, Digest],
    compared: Sequence[CommitRecord],
    images: Images,
) -> tuple[Likeness, list[str]]:
    """Return groups by perceptual hash, and what could not be read for the hashes."""

    def of_shard(record: CommitRecord, some: set[str]) -> tuple[Picked, dict[str, Hashes]]:
        found, made = picked(output, record, some, images(record)), dict[str, Hashes]()
        for key, content in sorted(found.images.items()):
            row = found.rows[key]
            with suppress(PictureError):
                image = read_picture(content, images(record), row["width"], row["height"], draft=(HASHED, HASHED))
                made[key] = Hashes(phash(image), colours(image))
        return found, made

    keys = np.concatenate([digests[r.shard].keys for r in compared if r.shard in digests] or [np.array([], "S")])
    hashes: dict[str, Hashes] = {}
    problems: list[str] = []
    for found, made in each(records, _decoded(keys[:MOST_HASHED]), of_shard):
        hashes |= made
        problems += [*found.problems, *(f"{key}: its image cannot be decoded" for key in sorted(set(found.images) - set(made)))]
    if not hashes:
        return Likeness("hash", 0, 0, 0, ()), problems
    return _likeness("hash", np.array(list(hashes), "S"), by_hash(list(hashes.values()))), problems


def _equal(digests: Sequence[Digest]) -> Likeness:
    if not any(len(digest.keys) for digest in digests):
        return Likeness("pixels", 0, 0, 0, ())
    keys = np.concatenate([digest.keys for digest in digests])
    return _likeness("pixels", keys, equal(np.concatenate([digest.pixels for digest in digests])))


def _likeness(how: str, keys: np.ndarray, groups: Sequence[Group]) -> Likeness:
    shown = [(list(_decoded(keys[group.members[:MEMBERS]])), len(group.members)) for group in groups[:GROUPS]]
    return Likeness(how, len(keys), len(groups), sum(len(group.members) for group in groups), shown)


def _decoded(keys: np.ndarray) -> Iterator[str]:
    return (key.decode() for key in keys.tolist())


def _hardware(output: str) -> dict[str, str]:
    try:
        return read_hardware(output)
    except FileNotFoundError:
        return {}
