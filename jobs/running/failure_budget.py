"""Compares the candidates that fail with the number that `runtime.max_failed` allows."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from promptmill.configs.schema import MaxFailed
from promptmill.shards.commits import CommitRecord


@dataclass
class FailureBudget:
    """Counts the candidates of a plan that have failed against those that may.

    Counted are those in committed shards and those of this run. Rows that are bad before anything renders make no candidates.

    Attributes:
        allowed: As the config has it; None for as many as there are.
        planned: Number of candidates of the plan.
        failed: Number of failed candidates so far; `errors` has those of this run by code.
    """

    allowed: MaxFailed | None
    planned: int
    failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @classmethod
    def beside(cls, allowed: MaxFailed | None, planned: int, records: Iterable[CommitRecord]) -> "FailureBudget":
        """Return the budget of a run that goes on beside these committed shards."""
        return cls(allowed, planned, sum(record.failed for record in records))

    def add(self, failed: int, errors: Mapping[str, int]) -> None:
        """Count the failed candidates of a unit."""
        self.failed += failed
        self.errors.update(errors)

    @property
    def spent(self) -> bool:
        """Return whether more candidates have failed than are allowed to."""
        if self.allowed is None:
            return False
        if isinstance(self.allowed, int):
            return self.failed > self.allowed
        # Exact: a share of a float would be off by one at the edge.
        return self.failed * 100 > Fraction(self.allowed.removesuffix("%")) * self.planned

    @property
    def why(self) -> str:
        """Return the line that a run stops with."""
        codes = ", ".join(f"{code} {number:,}" for code, number in self.errors.most_common())
        reasons = f" (in this run: {codes})" if codes else ""
        way = "what is done is durable; raise it and run again to go on, or mend the cause and add --retry-failed"
        return f"runtime.max_failed {self.allowed}: {self.failed:,} of {self.planned:,} candidates have failed{reasons}; {way}"
