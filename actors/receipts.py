"""What a finished unit tells the driver: counts and times, never images."""

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from promptmill.configs.columns import CLIP_SCORE, SPARED
from promptmill.pipelines.work.joined_slices import Joined
from promptmill.pipelines.work.units import Unit
from promptmill.shards.outcomes import Outcomes, counts_of


@dataclass(frozen=True)
class Receipt(Outcomes):
    """Counts one unit, settled and durable. A slice has no requests: its unit counts them once it is joined.

    Attributes:
        name: Of the unit.
        errors: How often each code occurred.
        scores: Lowest, mean and highest CLIP score of its candidates; None where nothing was scored.
        seconds: By stage. Times and hosts differ between runs, so they go to stats/ and nowhere else.
        rendering_s: Of these seconds, those that its generator spent.
        part_bytes: Size of its part.
        host: Where it was finished.
        reasons: Why each try failed, of a unit that was given up.
    """

    name: str
    shard: int
    errors: Mapping[str, int]
    scores: tuple[float, float, float] | None
    seconds: Mapping[str, float] = field(default_factory=dict)
    rendering_s: float = 0.0
    part_bytes: int = 0
    host: str = ""
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, unit: Unit, rows: Sequence[Mapping[str, Any]], scores: Sequence[float], seconds: Mapping[str, float]) -> "Receipt":
        """Return the receipt of a unit by the rows of its part.

        Of a slice, candidates that may still be kept are not settled yet, and errors of a slice that failed as a whole are not
        counted yet: `of_joined` does both.
        """
        candidates: Counter[Any] = Counter(row["status"] for row in rows if row.get("candidate_index") is not None)
        whole = [row for row in rows if row.get("candidate_index") is None]
        rendered = {row["id"] for row in rows if row["status"] in ("kept", "rejected")}
        errors = Counter(row["error"] for row in rows if row.get("error"))
        candidates["failed"] += unit.candidates if unit.span and whole else sum(row["candidates"] for row in whole)
        candidates["spared"] = sum({row["id"]: row.get(SPARED) or 0 for row in rows}.values())
        if unit.span:
            open_ = sum(row.get("sha256") is not None for row in rows)
            candidates["rejected"] -= open_
            scores = [row[CLIP_SCORE] for row in rows if row["status"] == "rejected" and row.get("sha256") is None]
            errors = Counter(row["error"] for row in rows if row.get("error") and row not in whole)
        return cls(
            name=unit.name,
            shard=unit.shard,
            errors=dict(sorted(errors.items())),
            scores=_spread(scores),
            seconds=dict(seconds),
            host=platform.node(),
            requests=0 if unit.span else len(unit.requests),
            failed_requests=0 if unit.span else sum(placed.request.id not in rendered for placed in unit.requests),
            **dict[str, Any](candidates),
        )

    @classmethod
    def of_joined(cls, unit: Unit, joined: Joined, seconds: Mapping[str, float]) -> "Receipt":
        """Return the receipt of a unit that was made of its slices, of what theirs did not tell."""
        return cls(
            name=unit.name,
            shard=unit.shard,
            errors=joined.errors,
            scores=_spread(joined.scores),
            seconds=dict(seconds),
            part_bytes=joined.part_bytes,
            host=platform.node(),
            **counts_of(joined),
        )


def _spread(scores: Sequence[float]) -> tuple[float, float, float] | None:
    return (min(scores), sum(scores) / len(scores), max(scores)) if scores else None
