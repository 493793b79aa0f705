"""Compares the rows of a manifest as they were planned with the rows as they are now: edited, added, removed, moved."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptmill.configs.errors import shown
from promptmill.configs.parameters import Growing
from promptmill.configs.schema import Config
from promptmill.jobs.planning.plan import BadRow, ShardPlan
from promptmill.manifests.requests import to_json
from promptmill.pipelines.work.units import Placed

NAMED = 20  # rows; further rows are only counted
NO_DEFAULT = object()


@dataclass(frozen=True)
class EditedRow:
    """Describes the changes of one row.

    Attributes:
        shard, row: The row's place; `row` counts from 0 in the shard.
        id: The id of the request, as the manifest has it now.
        changes: By column, in words, as `steps was 10, is 20`.
        committed: Whether an image of the row, or its failure, is published already.
    """

    shard: int
    row: int
    id: str
    changes: tuple[str, ...]
    committed: bool

    def __str__(self) -> str:
        place = f"shard {self.shard:06d}, row {self.row}{', committed' if self.committed else ''}"
        return f"{shown(self.id)} ({place}): {'; '.join(self.changes)}"


@dataclass
class RowChanges:
    """Collects how the rows of a manifest differ from those of a plan, shard by shard, in memory that does not grow with the rows.

    Attributes:
        named: The first rows that were edited.
        edited, added, removed: Numbers of rows; edited rows are matched by their place and id.
        moved: The number of rows with another id than before at their place; `first_moved` names the first.
        committed: By shard, the committed rows that were edited, as ranges (first, last) of their numbers.
    """

    named: list[EditedRow] = field(default_factory=list)
    edited: int = 0
    added: int = 0
    removed: int = 0
    moved: int = 0
    first_moved: str = ""
    committed: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.edited or self.added or self.removed or self.moved)

    def see(self, then: ShardPlan | None, now: ShardPlan | None, was: Config, is_: Config, committed: bool) -> None:
        """Compare one shard's rows.

        Args:
            then, now: The shard as it was planned and as the manifest makes it; None where there is none.
            was, is_: The configs; a value that a row takes from their defaults is no change of the row.
            committed: Whether the shard is published.
        """
        old, new = _rows(then), _rows(now)
        edited = []
        for row in sorted({*old, *new}):
            if row not in old:
                self.added += 1
            elif row not in new:
                self.removed += 1
            elif _id(old[row]) != _id(new[row]):
                self.moved += 1
                where = f"shard {(then or now or ShardPlan(0, (), ())).shard:06d}, row {row}"
                self.first_moved = self.first_moved or f"{where} was {shown(_id(old[row]))}, is {shown(_id(new[row]))}"
            elif changes := tuple(_changes(old[row], new[row], was, is_)):
                self.edited += 1
                edited.append(row)
                if len(self.named) < NAMED:
                    assert now is not None
                    self.named.append(EditedRow(now.shard, row, _id(new[row]), changes, committed))
        if committed and edited and now is not None:
            self.committed[now.shard] = as_ranges(edited)

    @property
    def only_added(self) -> bool:
        """Return whether rows were added, and nothing else changed."""
        return bool(self.added) and not (self.edited or self.removed or self.moved)

    @property
    def committed_rows(self) -> int:
        return sum(last - first + 1 for ranges in self.committed.values() for first, last in ranges)

    def lines(self, only_committed: bool = False) -> list[str]:
        """Return the changes, a line each: the numbers, then the edited rows by their ids."""
        named = [row for row in self.named if row.committed or not only_committed]
        all_ = self.committed_rows if only_committed else self.edited
        lines = [] if only_committed else [f"rows: {self.edited:,} edited, {self.added:,} added, {self.removed:,} removed"]
        lines += [f"  {row}" for row in named]
        if all_ > len(named):
            lines.append(f"  and {all_ - len(named):,} more edited rows")
        if self.moved and not only_committed:
            have = "1 row has" if self.moved == 1 else f"{self.moved:,} rows have"
            lines.append(f"  {have} another id than before at the same place; the first: {self.first_moved}")
        return lines


def as_ranges(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending numbers as ranges (first, last): all rows of a shard are one pair, however many they are."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)


def _rows(shard: ShardPlan | None) -> dict[int, Placed | BadRow]:
    rows: list[Placed | BadRow] = [*shard.requests, *shard.bad] if shard else []
    return {row.row: row for row in rows}


def _id(row: Placed | BadRow) -> str:
    return row.id if isinstance(row, BadRow) else row.request.id


def _changes(then: Placed | BadRow, now: Placed | BadRow, was: Config, is_: Config) -> Iterator[str]:
    if isinstance(then, BadRow) or isinstance(now, BadRow):
        if not (isinstance(then, BadRow) and isinstance(now, BadRow)):
            yield "was a bad row, makes a request" if isinstance(then, BadRow) else f"is a bad row: {_message(now)}"
        elif (then.prompt, then.message) != (now.prompt, now.message):
            yield f"is a bad row still: {_message(now)}"
        return
    old, new = to_json(then.request), to_json(now.request)
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after or (before == _default(name, was) and after == _default(name, is_)):
            continue
        if name == "carried":
            yield from _carried(before or {}, after or {})
        elif name not in ("mode", "growing"):  # other columns decide these two
            yield f"{name} was {_shown(before)}, is {_shown(after)}"
    # Images that are only looked at when they are used have no hash in the plan.
    for name in sorted(then.images.keys() & now.images.keys()):
        if then.images[name] != now.images[name]:
            yield f"{name}: its picture is another one"


def _message(row: Placed | BadRow) -> str:
    return row.message if isinstance(row, BadRow) else ""


def _carried(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            yield f"{shown(name)} was {_shown(then.get(name))}, is {_shown(now.get(name))}"


def _default(name: str, config: Config) -> Any:
    """Return the value that a row without this column has in `to_json`."""
    defaults = config.defaults
    growing = defaults.candidates if isinstance(defaults.candidates, Growing) else None
    if name == "candidates":
        return growing.max if growing else defaults.candidates
    if name == "growing":
        return dict(growing) if growing else None
    if name == "prompt":
        return defaults.prompt or ""
    if name == "loras":
        return [dict(lora) for lora in defaults.loras]
    return getattr(defaults, name, NO_DEFAULT)


def _shown(value: Any) -> str:
    return "not given" if value is None else shown(repr(value), 60)
