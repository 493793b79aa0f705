"""Makes the passes of a long request durable, one by one, and goes on behind the last of them after a kill.

A request with drafts, or whose candidates grow, passes generators and scorers many times, as many candidates at a time as a slice
has. Each pass but the last leaves a part: the values of its candidates that decide how the course goes on, and, for a pass in full,
the values that their rows need. The image files that may be kept lie in a part beside it, which is written first and read only at
the end.

A course is a function of its passes. So a process that finds such parts goes through the course again without rendering, and stands
where the last run was cut off. The last pass writes the part of the whole request, as if nothing had been cut off.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from promptmill.configs.columns import CACHED, CONTROL_MAPS, LOST
from promptmill.pipelines.scoring.finishing import Finished, Onward, Passed, Spread, Waiting, finish
from promptmill.pipelines.work.candidate_scores import Found, packed_look, unpacked_look
from promptmill.pipelines.work.passes import Course
from promptmill.pipelines.work.recipe import Recipe
from promptmill.pipelines.work.results import CODES, Candidate, Failure, Outcome, Rendered
from promptmill.pipelines.work.units import Unit, parse_key, sample_key
from promptmill.shards.parts import PartError, part_name, read_part, write_part
from promptmill.shards.storage import delete, join, names, staying
from promptmill.shards.tables import FOUND, IMAGE, PASSED, pass_form

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from promptmill.pipelines.scoring.scorers import Scorers

IMAGES = pa.schema([("key", pa.string())])  # of the part beside a pass's own, without the image itself
# Columns of a row that come from the rendered candidate, not from scoring.
RENDERED = (
    "key",
    "candidate_index",
    "error",
    "error_message",
    "seed",
    "prompt_truncated",
    LOST,
    "unet_evaluations",
    CACHED,
    PASSED,
)


def finish_durably(
    unit: Unit,
    rendered: Rendered,
    scorers: "Scorers",
    recipe: Recipe,
    earlier: "Callable[[], Sequence[Waiting]]",
    spread: Spread = map,
) -> Finished | Onward:
    """Finish a unit or a pass of it as `finishing.finish`; where passes are durable, this pass is durable once the call returns.

    Args:
        unit, rendered, scorers, recipe, earlier, spread: As in `finish`. `earlier` is not called where passes are durable.

    Returns:
        As `finish`. After a durable pass no result has to wait anywhere.

    Raises:
        PartError: The part of an earlier pass is broken or gone. That part and the later ones are deleted.
        StorageError: The output cannot be read or written.
    """
    if unit.course is None or unit.course.durable is None:
        return finish(unit, rendered, scorers, recipe, earlier, spread=spread)
    passes = _Passes(recipe, unit)
    finished = finish(unit, rendered, scorers, recipe, passes.in_full, passes.images, spread)
    if not isinstance(finished, Onward):
        return finished
    assert finished.passed is not None
    with staying(recipe.output):
        passes.write(unit.course.durable, finished.passed)
    return Onward(finished.course)


def resumed(unit: Unit, parts: Collection[str], recipe: Recipe) -> Unit:
    """Return a unit with its course behind the last durable pass; the unit itself where no pass is durable.

    A part that is broken, or is not of the pass that the course has next, ends the search: that part and all behind it are deleted.

    Args:
        unit: The unit as a run begins it.
        parts: The names of the parts that are there.
        recipe: The constants of the run.

    Raises:
        StorageError: The output cannot be read or written.
    """
    course = unit.course
    if course is None or course.durable is None:
        return unit
    passes = _Passes(recipe, unit)
    while part_name(unit.pass_name(course.durable)) in parts:
        try:
            further = _behind(unit, course, passes.read(course.durable))
        except PartError:
            passes.drop(course.durable)
            break
        course = further
    return replace(unit, course=course)


def _behind(unit: Unit, course: Course, passed: Passed) -> Course:
    """Return a course behind a pass that was read; raise PartError where the pass is not the one that comes next."""
    (placed,), (outcome,) = unit.requests, passed.made.rendered.outcomes
    turn = course.turns.get(placed.row)
    if turn is None or (turn.draft, turn.candidates) != (passed.draft, tuple(made.index for made in outcome.candidates)):
        raise PartError(f"{unit.pass_name(course.durable or 0)}: is of other candidates")
    further = course.after({placed.row: placed.request}, passed.made.rendered, passed.scores, {}, passed.looks)
    if not further.turns:
        # The last pass leaves the part of the whole request, and none of its own.
        raise PartError(f"{unit.pass_name(course.durable or 0)}: nothing is left behind it")
    return further


class _Passes:
    """Reads, writes and deletes the parts of the passes of a unit's only request."""

    def __init__(self, recipe: Recipe, unit: Unit):
        self._output, self._unit, self._fingerprint = recipe.output, unit, recipe.fingerprint
        self._ranking, self._form = recipe.config.ranking, pass_form(recipe.form)
        (self._placed,) = unit.requests

    def write(self, number: int, passed: Passed) -> None:
        """Write the parts of a pass, its images first, so that the images of a pass with a part are whole."""
        rows = list(self._rows(passed))
        images = [{"key": row["key"], IMAGE: image} for row in rows if (image := row.pop(IMAGE, None)) is not None]
        if images:
            write_part(self._output, self._images(number), images, IMAGES, self._fingerprint)
        write_part(self._output, part_name(self._unit.pass_name(number)), rows, self._form, self._fingerprint)

    def read(self, number: int) -> Passed:
        """Return the pass that `write` was called with, without its images; raise PartError where its part is broken or gone."""
        name = part_name(self._unit.pass_name(number))
        rows = self._table(name, self._form).drop_columns([IMAGE]).to_pylist()
        try:
            return self._passed(rows)
        except (TypeError, ValueError, KeyError, IndexError, AssertionError):
            raise PartError(f"{join(self._output, 'parts', name)}: its rows are not those of a pass") from None

    def in_full(self) -> list[Waiting]:
        """Return the results of the passes in full behind the unit, without the images."""
        course = self._unit.course
        assert course is not None and course.durable is not None
        passes = (self._or_dropped(number) for number in range(course.durable))
        return [passed.made for passed in passes if passed.draft is None]

    def images(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the image files of candidates by key. One part at a time is in memory."""
        course, found = self._unit.course, dict[str, bytes]()
        assert course is not None and course.durable is not None
        there = set(names(join(self._output, "parts")))
        for number in range(course.durable):
            if self._images(number) not in there:
                continue
            try:
                table = self._table(self._images(number), IMAGES)
            except PartError as error:
                raise self._dropped(number, error) from None
            for key, image in zip(table["key"].to_pylist(), table[IMAGE], strict=True):
                if key in keys:
                    found[key] = image.as_py()
        if lacking := sorted(set(keys) - found.keys()):
            # The pass of the lost image is not known any more, so all passes are rendered again.
            raise self._dropped(0, PartError(f"{join(self._output, 'parts')}: the image of {lacking[0]} is not there any more"))
        return found

    def drop(self, number: int) -> None:
        """Delete the parts of a pass and of those behind it, the last first: so what is left begins with the first pass."""
        begins = self._unit.pass_name()
        there = [name for name in names(join(self._output, "parts")) if name.startswith(begins)]
        own = part_name(self._unit.pass_name(0)).removeprefix(f"{begins}0000")
        for name in sorted(there, reverse=True):
            said = name.removeprefix(begins).removesuffix(own).removesuffix("-images")
            if name.endswith(own) and said.isdigit() and int(said) >= number:
                delete(join(self._output, "parts", name))

    def _images(self, number: int) -> str:
        name = self._unit.pass_name(number)
        begins = f"{self._unit.pass_name()}{number:04d}"
        return part_name(f"{begins}-images{name.removeprefix(begins)}")

    def _or_dropped(self, number: int) -> Passed:
        try:
            return self.read(number)
        except PartError as error:
            raise self._dropped(number, error) from None

    def _dropped(self, number: int, error: PartError) -> PartError:
        self.drop(number)
        return PartError(f"{error}; deleted: run again, and what it held is rendered again")

    def _table(self, name: str, form: pa.Schema) -> pa.Table:
        try:
            return read_part(self._output, name, form, self._fingerprint, CONTROL_MAPS in self._form.names)
        except FileNotFoundError:
            raise PartError(f"{join(self._output, 'parts', name)}: is not there any more") from None

    def _rows(self, passed: Passed) -> Iterator[dict[str, Any]]:
        ranking, row = self._ranking, self._placed.row
        (outcome,) = passed.made.rendered.outcomes
        for made in outcome.candidates:
            place = row, made.index
            found = dict(passed.made.found.get(place, {}))
            if FOUND in found:
                found[FOUND] = found[FOUND].packed(ranking)
            goes_on: dict[str, Any] = {
                "draft": passed.draft,
                "score": passed.scores.get(place),
                "images": list(outcome.images.items()),
            }
            yield {
                **found,
                "key": sample_key(self._unit.shard, row, made.index),
                "candidate_index": made.index,
                "error": made.failure.code if made.failure else None,
                "error_message": made.failure.message if made.failure else None,
                "seed": made.seed,
                "prompt_truncated": outcome.prompt_truncated,
                **({LOST: outcome.tokens_lost} if LOST in self._form.names else {}),
                "unet_evaluations": made.evaluations,
                **({CACHED: made.cached} if CACHED in self._form.names else {}),
                PASSED: {**goes_on, **packed_look(passed.looks.get(place), ranking.diversity)},
            }

    def _passed(self, rows: list[dict[str, Any]]) -> Passed:
        ranking, row = self._ranking, self._placed.row
        made, scores, looks, found = [], dict[tuple[int, int], float](), {}, dict[tuple[int, int], Mapping[str, Any]]()
        for one in sorted(rows, key=lambda one: one["candidate_index"]):
            index, goes_on = one["candidate_index"], one[PASSED]
            if parse_key(one["key"]) != (self._unit.shard, row, index) or one["error"] not in (None, *CODES):
                raise ValueError(one["key"])
            failure = Failure(one["error"], one["error_message"]) if one["error"] else None
            evaluations, cached = int(one["unet_evaluations"]), int(one.get(CACHED) or 0)
            made.append(Candidate(index, int(one["seed"]), None, evaluations, failure, cached=cached))
            if goes_on["score"] is not None:
                if not math.isfinite(goes_on["score"]):
                    raise ValueError(one["key"])
                scores[row, index] = goes_on["score"]
            if (look := unpacked_look(goes_on)) is not None:
                looks[row, index] = look
            if one[FOUND] is not None:
                if one["clip_score"] is None or not math.isfinite(one[FOUND]["score"]):
                    raise ValueError(one["key"])
                columns = {name: value for name, value in one.items() if value is not None and name not in RENDERED}
                found[row, index] = {**columns, FOUND: Found.unpacked(one[FOUND], ranking)}
        # A dataset of an earlier format says only whether there were any.
        images, lost = dict(rows[0][PASSED]["images"]), rows[0].get(LOST, int(rows[0]["prompt_truncated"]))
        outcome = Outcome(row, tuple(made), images=images, tokens_lost=lost)
        return Passed(Waiting(Rendered((outcome,)), found), rows[0][PASSED]["draft"], scores, looks)
