"""Makes a plan: goes through the manifest once, as a stream, checks every row, and writes shard after shard."""

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from configs.parameters import MODES
from configs.schema import Config
from jobs.accepting import Aside, changes, look_aside, put_aside
from jobs.plan import (
    BadRow,
    Counts,
    Plan,
    PlanError,
    ShardPlan,
    drop_shards,
    earlier_plans,
    fingerprint_of,
    read_plan,
    read_shard,
    shard_hash,
    write_plan,
    write_shard,
)
from manifests.carried import Types
from manifests.checking import Checked, check_rows, find_doubled
from manifests.duplicates import Ids
from manifests.files import open_file
from manifests.images import NOT_THERE, Roots, roots_of
from manifests.requests import Rules
from manifests.sources import ManifestError, find_files, is_own_output
from pipelines.clip_sources import embedding_width
from pipelines.errors import ModelError
from pipelines.facts import read_facts
from pipelines.fits import check_fits
from pipelines.identity import library_versions, model_identity, pinned
from pipelines.licences import licences
from pipelines.rows import ranking_columns
from pipelines.scorer_sources import check_scorers
from pipelines.sources import ROOT
from pipelines.units import Placed, cut, kind_of, price
from shards.storage import delete, join, names
from shards.tables import RESERVED

MAX_IMAGES_CHECKED = 100_000  # beyond, images are looked at when they are used, unless check_images says all
MAX_PROBLEMS = 50  # lines
MAX_NOTES = 10  # of files that were left out
MAX_BUCKETS = 100_000  # counted

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
    accept_changes: bool = False,
) -> Plan:
    """Go through the manifest and write the plan under the output, or find that the one there is the same.

    Memory is flat: one shard and 8 bytes a row.

    Args:
        sources: What it is made from.
        output: The dataset's URI.
        progress: Told of the rows gone through.
        tuned_batch: Of the denoiser, where it was tuned.
        accept_changes: Put a plan aside that was made from something else, with the parts made for it; its committed shards stay.

    Raises:
        PlanError: A file of the manifest cannot be read to its end; bad rows, one line each, where the config does not say to
            record them; or the output has another plan.
    """
    there = read_plan(output)
    if there is not None:
        different = changes(there, sources.inputs)
        if not different:
            # Where images lie now, and how this run is to go, are not what was planned.
            return replace(there, roots=sources.roots, config=sources.config)
        if not accept_changes:
            ways = "give another --out, go back on what changed, or give --accept-changes"
            raise PlanError([f"{output} was planned from something else; {ways}:", *different])
    elif earlier_plans(output) and not accept_changes:
        raise PlanError([f"{output}: its plan was put aside for changes; give --accept-changes to go on with these"])
    aside = look_aside(output, there, sources.inputs)
    if aside.plans:
        # A first pass that writes nothing: what would be refused is refused before anything is put aside.
        _Making(sources, output, progress, aside, writing=False).run()
        put_aside(output, there)
    making = _Making(sources, output, progress, aside)
    try:
        plan = making.run()
    except BaseException:
        making.clean()
        raise
    plan = replace(plan, tuned_batch=tuned_batch, accepted=aside.accepted)
    write_plan(output, plan)
    drop_shards(output, plan.shards)
    return plan


class _Making:
    """One pass over a manifest; `writing` the shards, or only looking whether anything is to be refused."""

    def __init__(self, sources: Sources, output: str, progress: Progress, aside: Aside, writing: bool = True):
        self.sources, self.output, self.progress, self.aside, self.writing = sources, output, progress, aside, writing
        self.config = sources.config
        self.recording = self.config.runtime.on_bad_row == "record"
        self.counts = Counts()
        self.problems: list[str] = []
        self.wrong = 0
        self.noted: dict[str, tuple[int, str]] = {}  # by note, in how many rows, and the first of them
        self.left_out: list[str] = []
        reserved = RESERVED | ranking_columns(self.config.ranking).keys()
        self.ids, self.types, self.buckets = Ids(), Types(reserved), set[int]()
        self.bad = array("Q")  # numbers of rows; each row takes its 8 bytes either here or in ids
        self.hashes: list[str] = []
        self.rows: list[Checked] = []

    def run(self) -> Plan:
        try:
            for checked in self.checked():
                self.take(checked)
            self.flush()
            self.mend_doubled()
        except ManifestError as error:
            # No row to record: nobody knows how many are behind it.
            raise self.refused(str(error)) from None
        if self.problems and not self.recording:
            raise self.refused()
        if self.counts.rows == 0:
            raise self.refused("the manifest has no rows")
        if self.counts.rows == self.counts.bad:
            raise self.refused("no row makes a request")
        carried = self.types.result()
        inputs = {**self.sources.inputs, "requests": fingerprint_of({"shards": self.hashes})}
        counts = replace(self.counts, buckets=len(self.buckets))
        known = licences(self.config.model, self.config.ranking)
        shards, width, roots = len(self.hashes), self.sources.embedding, self.sources.roots
        plan = Plan(inputs, shards, counts, carried, width, self.config, roots, licences=known, notes=self.notes())
        self.aside.check(plan)
        return plan

    def checked(self) -> Iterator[Checked]:
        """Every row, with its images looked at as far as the config says."""
        check = self.config.runtime.check_images
        limit = {"all": None, "at_run": 0, "auto": MAX_IMAGES_CHECKED}[check]
        return check_rows(self.sources.files, self.sources.rules, self.sources.roots, limit, self.left_out.append)

    def notes(self) -> tuple[str, ...]:
        """Return what a person should be told of though nothing is wrong, a line each."""
        lines = [
            f"{note} ({number:,} {'row' if number == 1 else 'rows, the first'}: {row})"
            for note, (number, row) in self.noted.items()
        ]
        more = [f"… and {len(self.left_out) - MAX_NOTES:,} more files like it"] if len(self.left_out) > MAX_NOTES else []
        return (*lines, *self.left_out[:MAX_NOTES], *more)

    def take(self, checked: Checked) -> None:
        if checked.request:
            problems = self.types.see(checked.request.carried)
            if problems:
                checked = replace(checked, request=None, problems=(*checked.problems, *problems))
        if checked.request:
            self.ids.add(checked.request.id)
        else:
            self.bad.append(checked.number)
        if checked.problems:
            self.note(checked.lines())
        for note in checked.notes:
            number, first = self.noted.get(note, (0, checked.row.name))
            self.noted[note] = number + 1, first
        self.rows.append(checked)
        if len(self.rows) == self.config.shards.size:
            self.flush()
            self.progress(self.counts.rows)

    def note(self, lines: Sequence[str]) -> None:
        self.wrong += len(lines)
        self.problems += lines[: max(0, MAX_PROBLEMS - len(self.problems))]

    def refused(self, *reasons: str) -> PlanError:
        more = self.wrong - len(self.problems)
        lines = [*self.problems, *([f"… and {more:,} more like these"] if more else [])]
        for file in self.sources.files:
            if any(line.startswith(f"{file}, row ") and NOT_THERE in line for line in lines) and is_own_output(file):
                lines.append(
                    f"{file}: was rendered by promptmill, so its image paths start from the folder of the manifest"
                    " that it was rendered from; name that folder in runtime.image_roots"
                )
                break
        return PlanError([*lines, *reasons])

    def flush(self) -> None:
        """The rows so far are a shard."""
        if not self.rows:
            return
        if len(self.hashes) in self.aside.committed:
            # As it was committed, whatever its rows are now.
            ids = [checked.request.id if checked.request else _bad_row(row, checked).id for row, checked in enumerate(self.rows)]
            kept = self.aside.shard(len(self.hashes), ids)
            self.rows = []
            self.count(kept)
            self.hashes.append(shard_hash(kept))
            return
        placed, bad = [], []
        for row, checked in enumerate(self.rows):
            if checked.request:
                placed.append(Placed(row, checked.request, checked.images, checked.file))
            else:
                bad.append(_bad_row(row, checked))
        self.rows = []
        shard = self.with_units(ShardPlan(len(self.hashes), tuple(placed), (), tuple(bad)))
        self.count(shard)
        # A plan that will be refused is not worth writing.
        writes = self.writing and (self.recording or not self.problems)
        self.hashes.append(write_shard(self.output, shard) if writes else "")

    def count(self, shard: ShardPlan, sign: int = 1) -> None:
        counts, requests, drafts = self.counts, [placed.request for placed in shard.requests], self.config.ranking.drafts
        if sign > 0 and len(self.buckets) < MAX_BUCKETS:
            self.buckets |= {hash(kind_of(request)) for request in requests}
        self.counts = Counts(
            rows=counts.rows + sign * (len(requests) + len(shard.bad)),
            bad=counts.bad + sign * len(shard.bad),
            requests=counts.requests + sign * len(requests),
            candidates=counts.candidates + sign * shard.candidates,
            keep=counts.keep + sign * sum(request.keep for request in requests),
            units=counts.units + sign * len(shard.units),
            evaluations=counts.evaluations + sign * sum(price(r, drafts) for r in requests),
            pixels=counts.pixels + sign * sum(r.width * r.height * r.candidates for r in requests),
            modes={mode: n for mode in MODES if (n := counts.modes.get(mode, 0) + sign * sum(r.mode == mode for r in requests))},
            undrafted=counts.undrafted + sign * sum(price(r, ()) for r in requests),
            growing=counts.growing + sign * sum(r.growing is not None for r in requests),
        )

    def mend_doubled(self) -> None:
        """Rows whose id an earlier row has become bad rows, in the shards already written."""
        size = self.config.shards.size
        found = find_doubled(self.sources.files, self.sources.rules, self.ids, self.bad)
        for number, some in itertools.groupby(found, lambda checked: (checked.number - 1) // size):
            doubled = {(checked.number - 1) % size: checked for checked in some}
            for checked in doubled.values():
                self.note(checked.lines())
            if not self.writing or not self.recording or number in self.aside.committed:
                continue
            shard = read_shard(self.output, number)
            self.count(shard, -1)
            kept = tuple(placed for placed in shard.requests if placed.row not in doubled)
            new = [_bad_row(row, checked) for row, checked in doubled.items()]
            bad = sorted([*shard.bad, *new], key=lambda bad: bad.row)
            mended = self.with_units(ShardPlan(number, kept, (), tuple(bad)))
            self.count(mended)
            self.hashes[number] = write_shard(self.output, mended)

    def with_units(self, shard: ShardPlan) -> ShardPlan:
        place = {placed.row: i for i, placed in enumerate(shard.requests)}
        units = cut(shard.shard, shard.requests, self.config.model.batch, self.config.ranking.drafts)
        return replace(shard, units=tuple(tuple(place[placed.row] for placed in unit.requests) for unit in units))

    def clean(self) -> None:
        folder = join(self.output, "plan", "shards")
        for name in names(folder):
            if int(name.split(".")[0]) not in self.aside.committed:
                delete(join(folder, name))


def _bad_row(row: int, checked: Checked) -> BadRow:
    values = checked.row.values
    id, prompt = values.get("id"), values.get("prompt")
    return BadRow(
        row,
        str(id)[:512] if isinstance(id, str | int) else str(checked.number),
        prompt[:10_000] if isinstance(prompt, str) else None,
        f"{checked.row.name}: {'; '.join(checked.problems)}"[:2000],
    )
