"""Makes images of a dataset again and compares them with what their metadata says: without Ray, on this machine."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from promptmill.configs.errors import shown
from promptmill.jobs.planning.plan import Plan, PlanError, read_hardware, read_plan
from promptmill.jobs.planning.shard_plans import read_shard, with_shard_hashes
from promptmill.jobs.verifying.image_places import NOTHING, OF_IMAGES, Given, places, remedy, seen_images
from promptmill.manifests.own_pictures import alone
from promptmill.pipelines.work.metadata_rows import provenance_of
from promptmill.pipelines.work.passes import Course, Staged
from promptmill.pipelines.work.results import Outcome
from promptmill.pipelines.work.stage_parts import failed_in_stage
from promptmill.pipelines.work.units import Placed, Unit, candidate_seed, cut, parse_key
from promptmill.shards import finished
from promptmill.shards.commits import CommitRecord
from promptmill.shards.image_files import encode_image, pixel_sha256
from promptmill.shards.keys import LIKE
from promptmill.shards.outcomes import request_of

if TYPE_CHECKING:
    from promptmill.pipelines.rendering.engine import Engine
    from promptmill.pipelines.rendering.stages import Stages


@dataclass(frozen=True)
class Regenerated:
    """Holds an image made again.

    Attributes:
        key: The candidate's key.
        image: The bytes of the image file, encoded as the dataset's are.
        ending: The ending of its name, without the dot.
        same: Whether its pixels are those that the metadata has the hash of; None where it had failed, or was only drafted, and
            there is no hash.
        hardware: What the run's kind of hardware has that this one has not, where they differ; then other bits are no wonder.
        drafted: Whether the dataset has it as drafted only.
    """

    key: str
    image: bytes
    ending: str
    same: bool | None
    hardware: str
    drafted: bool = False


def regenerate(output: str, key: str, given: Given = NOTHING) -> Regenerated:
    """Render the candidate that a key names in full, kept or not, finished or drafted; one that failed is tried again.

    Args:
        output: The dataset's URI.
        key: The candidate's key.
        given: Where the manifest's images lie now.

    Raises:
        PlanError: There is no such output or candidate, or it does not become an image.
        CommitError: The shard's metadata is not what its commit record says.
        ModelError: The model cannot be loaded.
    """
    again = Again(output, given)
    try:
        shard, _, _ = parse_key(key)
    except ValueError:
        raise PlanError([f"{shown(key)}: not a key, which is like {LIKE}: shard, row, candidate"]) from None
    try:
        there = finished.shard(output, shard)
        record, row = there.record, _row(there, key)
    except (LookupError, FileNotFoundError):
        raise PlanError([f"{key}: no such candidate in {output}"]) from None
    again.check_up_to_date(record, key)
    was_kept = row["status"] == "kept" or failed_in_stage(row["error_message"])
    (made,) = again.images(record, {key: row["pixel_sha256"]}, kept={key} if was_kept else ())
    return replace(made, drafted=row["status"] == "drafted")


def _row(shard: finished.ShardReader, key: str) -> dict[str, Any]:
    """Return the columns of a candidate that tell how its image was made: its status, its error, the hash of its pixels."""
    for row in shard.table().select(["key", "status", "error_message", "pixel_sha256", "candidates"]).to_pylist():
        # A request that failed as a whole has one row, without a candidate.
        if row["key"] == key or (row["key"] == request_of(key) and parse_key(key)[2] < (row["candidates"] or 0)):
            return row
    raise LookupError(key)


class Again:
    """Renders candidates of an output again; a model is loaded when it is first needed, and stays.

    Args:
        output: The dataset's URI.
        given: Where the manifest's images lie now.

    Raises:
        PlanError: Nothing was planned there, or a shard's plan was altered.
    """

    def __init__(self, output: str, given: Given = NOTHING):
        plan = read_plan(output)
        if plan is None:
            raise PlanError([f"{output}: nothing was planned there"])
        self._output, self._plan, self._given = output, with_shard_hashes(output, plan), given
        self._engines: dict[str, Engine] = {}  # by the plan's fingerprint
        self._with_stages: dict[str, Stages] = {}  # likewise

    def check_up_to_date(self, record: CommitRecord, key: str) -> None:
        """Raise PlanError where the row of a key was edited since its image was made, and waits to be rendered again."""
        if parse_key(key)[1] in self._plan.rerenders(record.shard, record.generation):
            raise PlanError([f"{key}: its row was edited and is to be rendered again; `promptmill run` does so"])

    def images(
        self,
        record: CommitRecord,
        wanted: Mapping[str, str | None],
        lost: dict[str, str] | None = None,
        kept: Collection[str] = (),
    ) -> Iterator[Regenerated]:
        """Render candidates of one shard, in no order.

        Args:
            record: The shard's commit record, which may be of an earlier plan.
            wanted: The `pixel_sha256` of each candidate, by key; None for one that failed.
            lost: Takes, by key, why a candidate does not become an image; without it, that is a PlanError.
            kept: The keys of kept candidates, whose images went through the config's stages.

        Raises:
            PlanError: A candidate is not in the plan, or does not become an image.
            ModelError: The model cannot be loaded.
        """
        plan = self._plan if record.fingerprint == self._plan.fingerprint else None
        # Committed before changes that were accepted, it is of an earlier one.
        plan = plan or read_plan(self._output, record.fingerprint) or self._plan
        placed = {placed.row: placed for placed in read_shard(self._output, record.shard, self._plan).requests}
        keys, asked = sorted(wanted), list[Placed]()
        seen: Mapping[str, Mapping[str, str | None] | None] | None = None
        for number, key in enumerate(keys):
            _, row, index = parse_key(key)
            if row not in placed:
                raise PlanError([f"{key}: no such candidate in {self._output}"])
            request, images = placed[row].request, placed[row].images
            if any(column not in images for column, _ in request.images()):
                # The plan did not look at them: what the run found tells which they were.
                seen = seen_images(self._output, [record]) if seen is None else seen
                found = seen.get(request_of(key)) or {}
                images = {**{column: sha256 for column, sha256 in found.items() if sha256 is not None}, **images}
            # A row's own seed counts up from candidate 0, so a request of one candidate with this seed is this candidate.
            single = alone(request, index, candidate_seed(plan.config.seed, request, index))
            asked.append(replace(placed[row], row=number, request=single, images=images))
        form, quality = plan.config.shards.image_format, plan.config.shards.quality
        for unit in cut(record.shard, asked, plan.config.model.batch):
            through = {one.row for one in unit.requests if keys[one.row] in kept}
            for one, outcome in zip(unit.requests, self._rendered(plan, unit, through), strict=True):
                key = keys[one.row]
                failure = outcome.failure or outcome.candidates[0].failure
                pixels = outcome.candidates[0].pixels if outcome.candidates else None
                if failure or pixels is None:
                    way = f"; {remedy(failure.fault)}" if failure and failure.code in OF_IMAGES else ""
                    why = f"{failure.message if failure else 'did not become an image'}{way}"
                    if lost is None:
                        raise PlanError([f"{key}: {why}"])
                    lost[key] = why
                    continue
                passed = plan.config.stages if one.row in through else ()
                provenance = provenance_of(one.request, plan.config, outcome.images, pixels.shape[:2], passed)
                image = encode_image(pixels, form, quality, provenance)
                same = pixel_sha256(pixels) == wanted[key] if wanted[key] else None
                yield Regenerated(key, image, form, same, self._hardware)

    def _rendered(self, plan: Plan, unit: Unit, through: Collection[int]) -> Sequence[Outcome]:
        """Return the outcomes of requests of one candidate each; the images of some rows go through the stages."""
        engine = self._engine(plan)
        outcomes = {outcome.row: outcome for outcome in engine.render(unit).outcomes}
        for number, stage in enumerate(plan.config.stages):
            pictures = {
                (row, one.index): one.pixels
                for row in sorted(through)
                for one in outcomes[row].candidates
                if one.pixels is not None
            }
            if pictures:
                staged = Staged(number, stage, {row: (index,) for row, index in pictures})
                rendered = self._stages(plan).render(replace(unit, course=Course((), {}, staged=staged)), pictures)
                # A stage reads no images of requests.
                outcomes |= {one.row: replace(one, images=outcomes[one.row].images) for one in rendered.outcomes}
        return [outcomes[placed.row] for placed in unit.requests]

    def _engine(self, plan: Plan) -> "Engine":
        # Loading takes seconds, which a wrong key need not wait for.
        from promptmill.pipelines.rendering.engine import Engine

        if plan.fingerprint not in self._engines:
            config = plan.config
            self._engines[plan.fingerprint] = Engine(
                config.model, config.seed, places(plan.roots, self._given), prompts=config.prompts
            )
        return self._engines[plan.fingerprint]

    def _stages(self, plan: Plan) -> "Stages":
        from promptmill.pipelines.rendering.stages import Stages

        if plan.fingerprint not in self._with_stages:
            self._with_stages[plan.fingerprint] = Stages(self._engine(plan), plan.config, captions=False)
        return self._with_stages[plan.fingerprint]

    @cached_property
    def _hardware(self) -> str:
        from promptmill.pipelines.rendering.hardware import hardware_kind

        there = read_hardware(self._output)
        here = hardware_kind(self._plan.config.model.threads)
        return ", ".join(f"{name} {value}, here {here.get(name)}" for name, value in there.items() if here.get(name) != value)
