"""Makes shards of a plan from the rows of a manifest, and counts their contents.

A shard depends on its own rows alone, so that several processes may share the shards of a plan. A `Tally` holds what a plan has to
know of all its rows, ids and columns above all: the tallies of parts are joined in the order of the rows.
"""

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from promptmill.configs.columns import DECIDING
from promptmill.configs.drafts import Draft
from promptmill.configs.parameters import MODES
from promptmill.configs.preprocessors import annotator_of, parse_preprocess
from promptmill.configs.stages import StageOrCaptions
from promptmill.configs.step_caches import StepCache
from promptmill.jobs.planning.counts import Counts
from promptmill.jobs.planning.plan import BadRow, ShardPlan
from promptmill.jobs.planning.shard_plans import packed
from promptmill.manifests.carried import Types
from promptmill.manifests.checking import Checked, RowChecks
from promptmill.manifests.repeated_ids import Ids
from promptmill.manifests.rows import Row
from promptmill.manifests.rules import Rules
from promptmill.pipelines.work.evaluations import STABLE_DIFFUSION, Counting
from promptmill.pipelines.work.stages import staged_price
from promptmill.pipelines.work.units import Placed, cached_price, cut, kind_of, price, slices_of

MAX_PROBLEMS = 50  # lines

# Rows of one shard, each with its number, counted from 1 through all files.
NumberedRows = Sequence[tuple[int, Row]]


@dataclass(frozen=True)
class ShardRules:
    """Holds the constants that shards are made with.

    Attributes:
        files: The manifest's files.
        rules: The config's rules for rows.
        batch: Candidates a denoising batch.
        drafts: The cascade that candidates go through.
        reserved: Names that no carried column may have.
        counting: What the model decides of the number of evaluations of the denoiser.
        cache: The step cache that answers some of them.
        stages: The stages that kept images go through.
        maps: Whether the dataset is to have the control maps.
    """

    files: tuple[str, ...]
    rules: Rules
    batch: int
    drafts: tuple[Draft, ...]
    reserved: frozenset[str]
    counting: Counting = STABLE_DIFFUSION
    cache: StepCache | None = None
    stages: tuple[StageOrCaptions, ...] = ()
    maps: bool = False


@dataclass(frozen=True)
class PackedShard:
    """Holds one shard ready to be written.

    Attributes:
        content: The content of the shard's file.
        hash: The shard's `shard_hash`.
        counts: The numbers that the shard adds to the plan's.
        kinds: The kinds of the shard's requests, by `kind_of`.
    """

    content: bytes
    hash: str
    counts: Counts
    kinds: frozenset[Hashable]


@dataclass(frozen=True)
class Share:
    """Holds the values of a tally, in a form that another process can read; see `Tally`."""

    ids: bytes
    bad: bytes
    columns: Mapping[str, int]
    problems: Sequence[str]
    wrong: int
    noted: Mapping[str, tuple[int, str]]


class Tally:
    """Collects the ids, columns, notes and problems of all rows read so far, in 8 bytes a row and a little.

    Attributes:
        ids: Ids of the rows that are good by themselves.
        bad: The numbers of the other rows, ascending.
        types: The carried columns.
        problems: The first lines of problems.
        wrong: The number of all such lines.
        noted: By note of `Checked`, the number of its rows, and the name of the first.
        lacking: The files whose rows name images that are in none of the folders where these may lie.
    """

    def __init__(self, reserved: frozenset[str]):
        self.ids, self.bad, self.types = Ids(), array("Q"), Types(reserved)
        self.problems: list[str] = []
        self.wrong = 0
        self.noted: dict[str, tuple[int, str]] = {}
        self.lacking: set[str] = set()

    def see(self, checked: Checked) -> Checked:
        """Take the next row in, and return the row with the problems of its column names.

        Raises:
            ManifestError: There are too many columns by now.
        """
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
        if checked.lacks_image:
            self.lacking.add(checked.row.file)
        for note in checked.notes:
            number, first = self.noted.get(note, (0, checked.row.name))
            self.noted[note] = number + 1, first
        return checked

    def note(self, lines: Sequence[str], all: int | None = None) -> None:
        """Add lines of problems, which are the first of `all`."""
        self.wrong += len(lines) if all is None else all
        self.problems += lines[: max(0, MAX_PROBLEMS - len(self.problems))]

    def share(self) -> Share:
        """Return the tally's values for `join` in another process."""
        return Share(self.ids.hashes(), self.bad.tobytes(), self.types.seen(), self.problems, self.wrong, self.noted)

    def join(self, share: Share) -> bool:
        """Take in the rows behind those so far, from their own tally.

        Returns:
            False where there would be too many columns. Nothing was taken in then; `see` says from which row on.
        """
        if not self.types.join(share.columns):
            return False
        self.ids.join(share.ids)
        self.bad.frombytes(share.bad)
        self.note(share.problems, share.wrong)
        for note, (number, first) in share.noted.items():
            before, earlier = self.noted.get(note, (0, first))
            self.noted[note] = before + number, earlier
        return True


def make_shards(
    recipe: ShardRules, checks: RowChecks, first: int, shards: Iterable[NumberedRows]
) -> tuple[list[PackedShard], Share]:
    """Make consecutive shards whose rows need no look at images.

    Args:
        recipe: The constants that shards are made with.
        checks: Checks the rows.
        first: The number of the first shard.
        shards: The rows of each shard.

    Raises:
        ManifestError: There are too many columns.
    """
    tally = Tally(recipe.reserved)
    made = []
    for number, rows in enumerate(shards, first):
        made.append(pack(recipe, make_shard(recipe, number, [tally.see(checks.check(*each)) for each in rows])))
    return made, tally.share()


def make_shard(recipe: ShardRules, number: int, rows: Sequence[Checked]) -> ShardPlan:
    """Return the shard that consecutive rows make."""
    placed, bad = [], []
    for row, checked in enumerate(rows):
        if checked.request:
            placed.append(Placed(row, checked.request, checked.images, checked.file))
        else:
            bad.append(bad_row(row, checked))
    return with_units(recipe, ShardPlan(number, tuple(placed), (), tuple(bad)))


def with_units(recipe: ShardRules, shard: ShardPlan) -> ShardPlan:
    """Return the shard with its requests cut into units."""
    place = {placed.row: i for i, placed in enumerate(shard.requests)}
    units = cut(shard.shard, shard.requests, recipe.batch, recipe.drafts, recipe.stages)
    return replace(shard, units=tuple(tuple(place[placed.row] for placed in unit.requests) for unit in units))


def pack(recipe: ShardRules, shard: ShardPlan) -> PackedShard:
    """Return a shard ready to be written."""
    return PackedShard(*packed(shard), count(recipe, shard), kinds(shard))


def bad_row(row: int, checked: Checked) -> BadRow:
    """Return a plan's record of a row that makes no request; `row` counts from 0 in its shard."""
    values = checked.row.values
    id, prompt = values.get("id"), values.get("prompt")
    return BadRow(
        row,
        str(id)[:512] if isinstance(id, str | int) else str(checked.number),
        prompt[:10_000] if isinstance(prompt, str) else None,
        f"{checked.row.name}: {'; '.join(checked.problems)}"[:2000],
    )


def kinds(shard: ShardPlan) -> frozenset[Hashable]:
    """Return the kinds of a shard's requests."""
    return frozenset([kind_of(placed.request) for placed in shard.requests])


def count(recipe: ShardRules, shard: ShardPlan) -> Counts:
    """Count the contents of a shard, without its buckets, which it shares with others."""
    names = ("candidates", "keep", "evaluations", "pixels", "undrafted", "growing", "cached", "staged", "staged_alike")
    sums: dict[str, int] = dict.fromkeys(names, 0)
    modes: dict[str, int] = dict.fromkeys(MODES, 0)
    columns = Counter[str]()
    maps: set[tuple[str, Hashable]] = set()
    for placed in shard.requests:
        request = placed.request
        sums["candidates"] += request.candidates
        sums["keep"] += request.keep
        later, alike = staged_price(request, recipe.stages, recipe.counting, recipe.rules.multiple)
        sums["staged"] += later
        sums["staged_alike"] += alike
        sums["evaluations"] += later + price(request, recipe.drafts, recipe.counting)
        sums["cached"] += cached_price(request, recipe.drafts, recipe.cache, recipe.counting) if recipe.cache else 0
        sums["pixels"] += request.width * request.height * request.candidates
        sums["undrafted"] += later + price(request, (), recipe.counting)
        sums["growing"] += request.growing is not None
        columns.update(name for name in DECIDING if getattr(request, name) not in (None, ()))
        modes[request.mode] += 1
        maps |= _maps_of(placed)
    steered = Counter(str(len(p.request.controls)) for p in shard.requests if p.request.controls) if recipe.maps else {}
    requests, bad = len(shard.requests), len(shard.bad)
    sums |= {"rows": requests + bad, "bad": bad, "requests": requests}
    some = {mode: n for mode, n in modes.items() if n}
    units = sum(_rendered_as(recipe, shard, unit) for unit in shard.units)
    made = dict(sorted(Counter(name for name, _ in maps).items()))
    return Counts(units=units, modes=some, columns=dict(columns), steered=dict(steered), maps=made, **sums)


def _maps_of(placed: Placed) -> set[tuple[str, Hashable]]:
    """Return the maps that annotators make for a request: the preprocessor's name, and what the map depends on."""
    request = placed.request
    found: set[tuple[str, Hashable]] = set()
    for number, control in enumerate(request.controls):
        if annotator_of(control.preprocess):
            # Where pictures were not looked at, their paths stand for them.
            picture = placed.images.get(f"controls.{number}.image", (placed.file, control.image))
            name = parse_preprocess(control.preprocess)[0]
            found.add((name, (picture, control.preprocess, request.width, request.height)))
    return found


def _rendered_as(recipe: ShardRules, shard: ShardPlan, unit: Sequence[int]) -> int:
    """Return how many units a planned unit is rendered as: more than one where its only request is cut into slices."""
    if len(unit) > 1:
        return 1
    return slices_of(shard.requests[unit[0]].request, recipe.batch, recipe.drafts, bool(recipe.stages))


def added(counts: Counts, more: Counts, sign: int = 1) -> Counts:
    """Return the sum of two counts, or with a `sign` of -1 their difference; buckets stay as they are."""
    both: dict[str, Any] = {}
    for name, value in vars(counts).items():
        other = getattr(more, name)
        if isinstance(value, Mapping):
            sums = {key: value.get(key, 0) + sign * other.get(key, 0) for key in sorted({*value, *other}, key=_place)}
            both[name] = {key: number for key, number in sums.items() if number}
        else:
            both[name] = value if name == "buckets" else value + sign * other
    return Counts(**both)


def _place(key: str) -> tuple[int, str]:
    """Return the place of a count's key: modes in their order, numbers by their sizes, columns and preprocessors by their names."""
    return (MODES.index(key), "") if key in MODES else (int(key), "") if key.isdecimal() else (0, key)
