"""Computes from the times of calls how many scorers keep up with the generators; knows no clock of its own."""

import math
from collections import deque
from dataclasses import dataclass, field

RECENT = 16  # calls of each kind that count: a scorer's first ones, before it has its threads, say little of the later ones
BUSY = 0.9  # of its time that a scorer is to work at most: units do not come evenly


@dataclass
class ScorerDemand:
    """Holds the recent times of units at generators and at scorers.

    A unit that waits for a scorer says little by itself, since generators that start together also finish together. While the
    scorers keep up, though, no unit waits longer than generators take for a round of units, which all of them finish meanwhile. So
    a unit that has waited longer than its own rendering took says that the scorers fall behind.

    Attributes:
        since: When the pool of scorers has its present size, in seconds; units that were rendered before say nothing of it.
    """

    since: float = 0.0
    _rendered_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _scored_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def rendered(self, seconds: float) -> None:
        """Count one more unit of a generator: the seconds that the generator has worked since it was done with another."""
        self._rendered_s.append(seconds)

    def scored(self, seconds: float) -> None:
        """Count one more unit of a scorer: the seconds of the scorer's call."""
        self._scored_s.append(seconds)

    def needed(self, generators: int) -> int:
        """Return how many scorers so many generators need, by the recent times; 1 where there are none yet."""
        if not self._rendered_s or not self._scored_s:
            return 1
        rendering_s = sum(self._rendered_s) / len(self._rendered_s)
        scoring_s = sum(self._scored_s) / len(self._scored_s)
        return max(1, math.ceil(generators * scoring_s / (rendering_s * BUSY))) if rendering_s > 0 else 1

    def wanted(self, generators: int, scorers: int, rendered_at: float, rendering_s: float, waited_s: float) -> int:
        """Return how many scorers are wanted as a unit comes to its scorer, at least as many as there are.

        Args:
            generators, scorers: How many there are.
            rendered_at: When the unit's rendering was done, in seconds.
            rendering_s: Seconds of the call that rendered the unit.
            waited_s: Seconds that the unit has waited for the scorer.
        """
        if rendered_at < self.since or waited_s <= rendering_s:
            return scorers
        return max(scorers, self.needed(generators))

    def grown(self, now: float) -> None:
        """Begin anew with more scorers, which began to work at `now`."""
        self.since = now
        self._scored_s.clear()
