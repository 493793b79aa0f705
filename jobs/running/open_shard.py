"""Keeps track of an open shard: its units, the parts that are there, and the rows that are rendered again."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from promptmill.configs.schema import Config
from promptmill.jobs.planning.plan import ShardPlan
from promptmill.pipelines.work.passes import begin
from promptmill.pipelines.work.units import Unit, at_once, cut, is_long
from promptmill.shards.commits import CommitRecord
from promptmill.shards.parts import part_name


@dataclass
class Open:
    """Holds a shard under way.

    Attributes:
        shard: The shard's number, from 0.
        generation: The generation that the shard will be committed as.
        before: The record of the generation that is there, whose rows stay but for those `again`; None for a shard made whole.
        again: Rows, counted from 0 in the shard, that are rendered again.
        made_of: Names of the units, or pieces of them, whose parts make the shard.
        left: Names among `made_of` that have no part yet.
        others: Names of parts of the shard that may lie there besides.
        joins: By the name of a unit among `made_of` that is joined of its slices, the unit and its slices.
        passing: What the names of the parts begin with that units among `made_of`, and their pieces, leave pass by pass.
    """

    shard: int
    generation: int = 0
    before: CommitRecord | None = None
    again: frozenset[int] = frozenset()
    made_of: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    joins: dict[str, tuple[Unit, list[Unit]]] = field(default_factory=dict)
    passing: set[str] = field(default_factory=set)

    @property
    def parts(self) -> list[str]:
        """Return the names of the parts that make the shard, sorted."""
        return sorted(part_name(name) for name in self.made_of)

    def take_in(self, units: Iterable[Unit], parts: Collection[str], batch: int, stages: bool = False) -> list[Unit]:
        """Look at which units are durable; return those that are to be rendered: units, their slices, or what is left of pieces.

        Args:
            units: The shard's units.
            parts: Names of the parts that are there.
            batch: Candidates a denoising batch, which slices are cut by.
            stages: Whether kept images go through stages.
        """
        todo: list[Unit] = []
        for unit in units:
            if unit.course is not None and unit.course.durable is not None:
                self.passing.add(unit.pass_name())
            if stages:
                self.passing |= {one.stage_name() for one in (unit, *unit.pieces())}
            slices = unit.slices(batch)
            pieces = slices or [piece for piece in unit.pieces() if piece is not unit]
            there = {piece.name for piece in pieces if part_name(piece.name) in parts}
            if slices or part_name(unit.name) in parts or not there:
                self.made_of.add(unit.name)
                self.others |= {piece.name for piece in slices} or there
            else:
                self.made_of |= {piece.name for piece in pieces}
            if part_name(unit.name) in parts:
                continue
            if slices:
                self.joins[unit.name] = unit, slices
            todo += [piece for piece in pieces if piece.name not in there] if slices or there else [unit]
        self.left = {unit.name for unit in todo}
        return todo

    def split(self, unit: Unit) -> list[Unit]:
        """Return the pieces of a unit that died, which take its place."""
        pieces = unit.pieces()
        if len(pieces) > 1:
            for names in (self.made_of, self.left):
                names.discard(unit.name)
                names |= {piece.name for piece in pieces}
            self.others.add(unit.name)
        return pieces


def units_of(shard: Open, plan: ShardPlan, config: Config) -> list[Unit]:
    """Return the units of a shard as planned, or, of one that is there, new ones of the rows that are rendered again."""
    drafts, diversity = config.ranking.drafts, config.ranking.diversity
    if shard.before is None:
        planned = plan.cut()
    else:
        again = (placed for placed in plan.requests if placed.row in shard.again)
        planned = list(cut(shard.shard, again, config.model.batch, drafts, config.all_stages))
    most = partial(at_once, batch=config.model.batch)
    units = []
    for unit in planned:
        course = begin({placed.row: placed.request for placed in unit.requests}, drafts, diversity, most, bool(config.all_stages))
        if course and len(unit.requests) == 1 and is_long(unit.requests[0].request, config.model.batch, drafts):
            course = replace(course, durable=0)
        units.append(replace(unit, generation=shard.generation, course=course))
    return units
