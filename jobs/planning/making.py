"""Makes a plan: goes through the manifest once, as a stream, checks every row, and writes shard after shard."""

import bisect
import hashlib
import itertools
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from promptmill.configs.own_files import ROOT
from promptmill.configs.schema import Config
from promptmill.jobs.planning.accepted_changes import Accepting, Aside, Change, changes, is_of_rows, look_aside, put_aside
from promptmill.jobs.planning.plan import (
    Counts,
    Plan,
    PlanError,
    ShardPlan,
    drop_shards,
    read_plan,
    read_shard,
    requests_hash,
    shard_hash,
    write_plan,
)
from promptmill.jobs.planning.processes import MAX_SHARD, MAX_WORKERS, Made, Pool, cores
from promptmill.jobs.planning.row_changes import RowChanges
from promptmill.jobs.planning.shard_making import (
    NumberedRows,
    PackedShard,
    ShardRules,
    Tally,
    added,
    bad_row,
    count,
    kinds,
    make_shard,
    pack,
    with_units,
)
from promptmill.jobs.planning.shard_writing import ShardWriter
from promptmill.manifests.checking import Checked, RowChecks, check_rows, find_doubled
from promptmill.manifests.files import open_file
from promptmill.manifests.images import Roots, roots_of
from promptmill.manifests.requests import Rules
from promptmill.manifests.rows import Row
from promptmill.manifests.sources import ManifestError, find_files, is_own_output, read_rows
from promptmill.pipelines.models.capabilities import read_facts
from promptmill.pipelines.models.clip_sources import embedding_width
from promptmill.pipelines.models.compatibility import check_fits
from promptmill.pipelines.models.identity import library_versions, model_identity, pinned
from promptmill.pipelines.models.licences import licences
from promptmill.pipelines.models.scorer_sources import check_scorers
from promptmill.pipelines.work.errors import ModelError
from promptmill.pipelines.work.metadata_rows import ranking_columns
from promptmill.pipelines.work.units import Placed
from promptmill.shards.storage import delete, join, names
from promptmill.shards.tables import RESERVED

MAX_IMAGES_CHECKED = 100_000  # beyond, images are looked at when they are used, unless check_images says all
MAX_NOTES = 10  # of files that were left out
MAX_BUCKETS = 100_000  # counted
SHARED_FROM = 100_000  # rows, made here; only then are processes started to share those that follow

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Sources:
    """What a plan is made from, looked at but not yet gone through.

    Attributes:
        embedding: The width of CLIP embeddings, or None where none are kept.
        inputs: What the fingerprint is over, but for the requests.
    """

    config: Config
    files: tuple[str, ...]
    rules: Rules
    roots: Roots
    embedding: int | None
    inputs: Mapping[str, Any]


def look(config: Config, output: str | None = None) -> Sources:
    """Find the manifest, read what the model can do, and hash what decides the bytes.

    Args:
        output: Where a plan may be already: what was tuned and pinned for it holds.

    Raises:
        PlanError: One line for what is not there or cannot be used.
    """
    there = read_plan(output) if output is not None else None
    if there is not None and there.tuned_batch is not None:
        config = with_batch(config, there.tuned_batch)
    try:
        config = config.model_copy(update={"ranking": pinned(config.ranking, there.config.ranking if there else None)})
        manifest = [config.manifest] if isinstance(config.manifest, str) else config.manifest
        files = find_files([_manifest_place(pattern) for pattern in manifest])
        facts = read_facts(config.model)
        check_fits(config.model)
        inputs = {
            "manifest": [_sha256(file) for file in files],
            "config": config.render_config(),
            "models": model_identity(config.model, config.ranking),
            "versions": library_versions(config.model),
        }
        width = embedding_width(config.ranking)
        check_scorers(config.ranking)
    except (ManifestError, ModelError) as error:
        raise PlanError([str(error)]) from None
    if config.model.safety_checker and not facts.safety_checker:
        raise PlanError([f"model.safety_checker: {config.model.base} brings no safety checker; set it to false"])
    for number, draft in enumerate(config.ranking.drafts):
        if draft.scheduler and draft.scheduler not in facts.schedulers:
            said = f"{draft.scheduler} does not fit the model, which takes {', '.join(facts.schedulers)}"
            raise PlanError([f"ranking.drafts.{number}.scheduler: {said}"])
    if config.defaults.guidance_rescale and not facts.rescaled:
        raise PlanError([f"defaults.guidance_rescale: no pipeline of {config.model.base} takes it; leave it out"])
    rules = Rules(
        defaults=config.defaults,
        controls=tuple(config.model.controlnets),
        loras=tuple(lora.name for lora in config.model.loras),
        multiple=facts.multiple,
        modes=facts.modes,
        schedulers=facts.schedulers,
        rescaled=facts.rescaled,
        ranking=config.ranking,
        strict=config.runtime.strict,
    )
    runtime = config.runtime
    roots = replace(roots_of(files, runtime.image_roots, runtime.max_image_pixels), hosts=tuple(runtime.url_hosts))
    return Sources(config, tuple(files), rules, roots, None if config.shards.embeddings == "none" else width, inputs)


def _manifest_place(pattern: str) -> str:
    """A manifest from where one stands, or, as the presets name theirs, from promptmill's own folder."""
    own = ROOT / pattern
    return str(own) if "://" not in pattern and not Path(pattern).exists() and own.is_file() else pattern


def _sha256(file: str) -> str:
    try:
        with open_file(file) as stream:
            return hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()
    except OSError as error:
        raise ManifestError(f"{file}: {error.strerror or error}") from None


def first_request(sources: Sources) -> Placed:
    """The first row that makes a request, with its images looked at.

    Raises:
        PlanError: No row does, or the manifest cannot be read.
    """
    try:
        for checked in check_rows(sources.files, sources.rules, sources.roots):
            if checked.request and not checked.problems:
                return Placed(0, checked.request, checked.images, checked.file)
    except ManifestError as error:
        raise PlanError([str(error)]) from None
    raise PlanError(["no row makes a request"])


def with_batch(config: Config, batch: int) -> Config:
    """The config with another denoising batch."""
    return config.model_copy(update={"model": config.model.model_copy(update={"batch": batch})})


def make_plan(
    sources: Sources,
    output: str,
    progress: Progress = lambda rows: None,
    tuned_batch: int | None = None,
    accept_changes: Accepting = False,
) -> Plan:
    """Go through the manifest and write the plan under the output, or find that the one there is the same.

    Memory is flat: one shard, or a few MiB for each process that shares the work, and 8 bytes a row.

    Args:
        sources: What it is made from.
        output: The dataset's URI.
        progress: Told of the rows gone through.
        tuned_batch: Of the denoiser, where it was tuned.
        accept_changes: Put a plan aside that was made from something else, with the parts made for it; its committed shards stay.
            Where committed rows were edited, `keep` leaves their images and `rerender` has them rendered again; True asks which.

    Raises:
        PlanError: A file of the manifest cannot be read to its end; bad rows, one line each, where the config does not say to
            record them; or the output has another plan.
    """
    there = read_plan(output)
    different = changes(there, sources.inputs) if there else []
    if there is not None and not different:
        # Where images lie now, and how this run is to go, are not what was planned.
        return replace(there, roots=sources.roots, config=sources.config)
    aside = look_aside(output, there, sources.inputs)
    doubled: Mapping[int, Checked] = {}
    if aside.plans:
        # A first pass that writes nothing: what would be refused is refused before anything is put aside.
        try:
            looking = _look_through(sources, output, progress, aside)
        except PlanError as error:
            if accept_changes:
                raise
            raise PlanError([*_refusal(output, there, different), *error.problems]) from None
        rows, doubled = looking.compared, looking.doubled
        if there is not None and is_of_rows(different) and not rows and looking.requests == there.inputs["requests"]:
            # Other line ends, say: every row asks for what it asked for.
            return replace(there, roots=sources.roots, config=sources.config)
        if not accept_changes:
            if is_of_rows(different) and rows.only_added:
                more = f"the manifest has {rows.added:,} more row{'' if rows.added == 1 else 's'} than were planned"
                raise PlanError([f"{output}: {more}; --accept-changes goes on with them", *rows.lines()])
            raise PlanError([*_refusal(output, there, different), *(rows.lines() if rows else [])])
        if rows.committed and accept_changes is True:
            ways = "--accept-changes=keep leaves their images as they are, --accept-changes=rerender renders these rows again"
            edited = (
                "1 committed row was edited" if rows.committed_rows == 1 else f"{rows.committed_rows:,} committed rows were edited"
            )
            raise PlanError([f"{output}: {edited}; {ways}:", *rows.lines(True)])
        if accept_changes == "rerender":
            aside = aside.with_rerendered(rows)
        put_aside(output, there, aside.again, next(iter(aside.plans.values())))
    making = _Making(sources, output, progress, aside, doubled=doubled)
    try:
        plan = making.run()
    except BaseException:
        making.clean()
        raise
    making.writer.close()
    plan = replace(plan, tuned_batch=tuned_batch, accepted=aside.accepted, rerender=aside.again)
    write_plan(output, plan)
    drop_shards(output, plan.shards)
    return plan


def _refusal(output: str, there: Plan | None, different: Sequence[Change]) -> list[str]:
    if there is None:
        return [f"{output}: its plan was put aside for changes; give --accept-changes to go on with these"]
    ways = "give another --out, go back on what changed, or give --accept-changes"
    return [f"{output} was planned from something else; {ways}:", *map(str, different)]


def _look_through(sources: Sources, output: str, progress: Progress, aside: Aside) -> "_Making":
    """Go through the manifest without writing anything, and compare its rows with those that were planned."""
    looking = _Making(sources, output, progress, aside, writing=False)
    with closing(looking.writer):
        looking.run()
    if looking.doubled:
        # Which ids occur twice is only known at the end; each later row of such an id is a bad row.
        looking = _Making(sources, output, progress, aside, writing=False, doubled=looking.doubled)
        with closing(looking.writer):
            looking.run()
    return looking


class _Making:
    """One pass over a manifest; `writing` the shards, or only looking whether anything is to be refused."""

    def __init__(
        self,
        sources: Sources,
        output: str,
        progress: Progress,
        aside: Aside,
        writing: bool = True,
        doubled: Mapping[int, Checked] = MappingProxyType({}),
    ):
        self.sources, self.output, self.progress, self.aside, self.writing = sources, output, progress, aside, writing
        self.config = sources.config
        self.recording = self.config.runtime.on_bad_row == "record"
        self.left_out: list[str] = []
        reserved = RESERVED | {column.name for column in ranking_columns(self.config.ranking)}
        self.recipe = ShardRules(sources.files, sources.rules, self.config.model.batch, self.config.ranking.drafts, reserved)
        self.checks = RowChecks(sources.files, sources.rules, sources.roots, self.images_checked())
        self.tally, self.counts, self.buckets = Tally(reserved), Counts(), set[int]()
        self.hashes: list[str] = []
        self.ends = array("Q")  # of each shard, the number of its last row
        self.doubled = dict(doubled)  # rows whose id an earlier row has, by their numbers
        self.requests = ""
        self.compared = RowChanges()
        self.writer = ShardWriter(output)
        self.pool: Pool | None = None

    def images_checked(self) -> int | None:
        return {"all": None, "at_run": 0, "auto": MAX_IMAGES_CHECKED}[self.config.runtime.check_images]

    def run(self) -> Plan:
        try:
            self.go_through()
            self.aside.compare_removed(self.compared, len(self.hashes), self.config)
            self.mend_doubled()
        except ManifestError as error:
            # No row to record: nobody knows how many are behind it.
            raise self.refused(str(error)) from None
        if self.tally.problems and not self.recording:
            raise self.refused()
        if self.counts.rows == 0:
            raise self.refused("the manifest has no rows")
        if self.counts.rows == self.counts.bad:
            raise self.refused("no row makes a request")
        carried = self.tally.types.result()
        self.requests = requests_hash(self.hashes)
        inputs = {**self.sources.inputs, "requests": self.requests}
        counts = replace(self.counts, buckets=len(self.buckets))
        known = licences(self.config.model, self.config.ranking)
        shards, width, roots = len(self.hashes), self.sources.embedding, self.sources.roots
        hashes, notes = tuple(self.hashes), self.notes()
        plan = Plan(inputs, shards, counts, carried, width, self.config, roots, licences=known, shard_hashes=hashes, notes=notes)
        plan = replace(plan, dataset_format=self.aside.dataset_format)
        self.aside.check(plan)
        if self.writing:
            self.writer.finish(number for number in range(shards) if not self.aside.stays(number))
        return plan

    def notes(self) -> tuple[str, ...]:
        """Return what a person should be told of though nothing is wrong, a line each."""
        lines = [
            f"{note} ({number:,} {'row' if number == 1 else 'rows, the first'}: {row})"
            for note, (number, row) in self.tally.noted.items()
        ]
        more = [f"… and {len(self.left_out) - MAX_NOTES:,} more files like it"] if len(self.left_out) > MAX_NOTES else []
        return (*lines, *self.left_out[:MAX_NOTES], *more)

    def go_through(self) -> None:
        """Make a shard of each `shards.size` rows, here or in the pool."""
        size = self.config.shards.size
        try:
            for number, rows in enumerate(self.shards()):
                # To compare rows with those of the plan before, all shards are made here.
                alone = self.doubled or not self.writing or size > MAX_SHARD or cores() == 1
                if number * size >= SHARED_FROM and self.pool is None and not alone:
                    self.pool = Pool(self.recipe, self.take, min(cores(), MAX_WORKERS))
                if not self.share(number, rows):
                    self.drain()
                    self.make(rows)
            self.drain()
        finally:
            if self.pool:
                self.pool.close()

    def shards(self) -> Iterator[NumberedRows]:
        """Yield the rows of each shard; what is wrong with rows that no shard comes of is noted."""
        rows: list[tuple[int, Row]] = []
        shard = 0
        try:
            for numbered in enumerate(read_rows(self.sources.files, self.left_out.append), 1):
                rows.append(numbered)
                # A shard that was committed with fewer rows stays as it is; rows added behind them begin another.
                if len(rows) == self.aside.size_of(shard, self.config.shards.size):
                    yield rows
                    rows, shard = [], shard + 1
        except ManifestError:
            self.drain()
            for number, row in rows:
                self.tally.see(self.checks.check(number, row))
            raise
        if rows:
            yield rows

    def share(self, shard: int, rows: NumberedRows) -> bool:
        """Give a shard to the pool; False where there is none yet, or the shard needs more than its rows."""
        if self.pool is None or not self.pool.ready() or shard in self.aside.committed:
            return False
        return not any(self.checks.looks(row) for _, row in rows) and self.pool.give(shard, rows)

    def drain(self) -> None:
        if self.pool:
            self.pool.drain()

    def take(self, shards: Iterable[NumberedRows], made: Made) -> None:
        """Take over what a worker has made of shards, or make them here."""
        if made is None or not self.tally.join(made[1]):
            for rows in shards:
                self.make(rows)
            return
        for shard in made[0]:
            self.keep(shard)

    def make(self, rows: NumberedRows) -> None:
        """Make the next shard."""
        number = len(self.hashes)
        checked = [self.tally.see(self.doubled.get(row) or self.checks.check(row, values)) for row, values in rows]
        shard = make_shard(self.recipe, number, checked)
        if not self.writing:
            self.aside.compare(self.compared, shard, self.config)
        # As it was committed, whatever its rows are now, unless they are to be rendered again.
        stays = self.aside.committed_plan(shard) if number in self.aside.committed else None
        if stays is None:
            self.keep(pack(self.recipe, shard))
        else:
            self.keep(PackedShard(b"", shard_hash(stays), count(self.recipe, stays), kinds(stays)), write=False)

    def keep(self, shard: PackedShard, write: bool = True) -> None:
        """Count the next shard, and write it."""
        # A plan that will be refused is not worth writing.
        if write and self.writing and (self.recording or not self.tally.problems):
            number = len(self.hashes)
            self.writer.write(number, shard.content, committed=number in self.aside.committed)
        self.hashes.append(shard.hash)
        self.counts = added(self.counts, shard.counts)
        self.ends.append(self.counts.rows)
        self.see_kinds(shard.kinds)
        if shard.counts.rows == self.config.shards.size:
            self.progress(self.counts.rows)

    def see_kinds(self, kinds: Iterable[Hashable]) -> None:
        if len(self.buckets) < MAX_BUCKETS:
            self.buckets |= {hash(kind) for kind in kinds}

    def refused(self, *reasons: str) -> PlanError:
        more = self.tally.wrong - len(self.tally.problems)
        lines = [*self.tally.problems, *([f"… and {more:,} more like these"] if more else [])]
        for file in self.sources.files:
            if file in self.tally.lacking and is_own_output(file):
                lines.append(
                    f"{file}: was rendered by promptmill, so its image paths start from the folder of the manifest"
                    " that it was rendered from; name that folder in runtime.image_roots"
                )
                break
        return PlanError([*lines, *reasons])

    def mend_doubled(self) -> None:
        """Make bad rows of those whose id an earlier row has, in the shards already written."""
        self.writer.wait()
        found = find_doubled(self.sources.files, self.sources.rules, self.tally.ids, self.tally.bad)
        for number, some in itertools.groupby(found, lambda checked: bisect.bisect_left(self.ends, checked.number)):
            first = self.ends[number - 1] + 1 if number else 1
            doubled = {checked.number - first: checked for checked in some}
            for checked in doubled.values():
                self.tally.note(checked.lines())
                self.doubled[checked.number] = checked
            if not self.writing or not self.recording or number in self.aside.committed:
                continue
            shard = read_shard(self.output, number)
            kept = tuple(placed for placed in shard.requests if placed.row not in doubled)
            new = [bad_row(row, checked) for row, checked in doubled.items()]
            bad = sorted([*shard.bad, *new], key=lambda bad: bad.row)
            mended = pack(self.recipe, with_units(self.recipe, ShardPlan(number, kept, (), tuple(bad))))
            self.counts = added(added(self.counts, count(self.recipe, shard), -1), mended.counts)
            self.see_kinds(mended.kinds)
            self.hashes[number] = mended.hash
            self.writer.write(number, mended.content)

    def clean(self) -> None:
        """Remove what was written."""
        self.writer.close()
        folder = join(self.output, "plan", "shards")
        for name in names(folder):
            number = name.split(".")[0]
            if number.isdigit() and int(number) not in self.aside.committed:
                delete(join(folder, name))
