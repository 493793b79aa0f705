"""Does again what a remote storage failed at for a passing reason: a bounded number of times, with growing pauses.

A single request is tried again by obstore itself (see `object_stores.REQUEST_TRIES`). What is left for here is what obstore does
not do: conditional puts that met a conflict or no answer, listings that break off, uploads that stall, and long outages.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

Result = TypeVar("Result")

TRIES = 8
FIRST_PAUSE = 0.5  # seconds; each pause is twice as long as the one before, less up to half of it by chance
LONGEST_PAUSE = 15.0  # seconds
LAST_TRY_WITHIN = 100.0  # seconds after the first try began; one that hangs ends by its own timeouts

PASSING_STATUS = frozenset({429, 500, 502, 503, 504})

# Not the shared generator: a seeded run, or a forked worker, would pause like all others.
_chance = random.SystemRandom()


class PassingError(Exception):
    """Says that a storage failed for a reason that may be gone by the next try."""


class GaveUpError(Exception):
    """Says how often something was tried; every try failed for a passing reason, and the last one's error is the cause."""


def persistently(action: Callable[[], Result]) -> Result:
    """Return what an idempotent action returns, tried again while it fails for a passing reason.

    Raises:
        GaveUpError: It did so every time.
        Exception: The action's own, at once, where trying again would not help.
    """
    began, tries, pause = time.monotonic(), 0, FIRST_PAUSE
    while True:
        tries += 1
        try:
            return action()
        except Exception as error:
            if not is_passing(error):
                raise
            shortened = pause * _chance.uniform(0.5, 1)
            spent = time.monotonic() - began
            if tries >= TRIES or spent + shortened > LAST_TRY_WITHIN:
                raise GaveUpError(f"tried {tries} time{'s' * (tries > 1)} in {spent:.0f} s") from error
        time.sleep(shortened)
        pause = min(2 * pause, LONGEST_PAUSE)


def is_passing(error: BaseException) -> bool:
    """Return whether an error, or what it came from, is one that may be gone by the next try."""
    return any(isinstance(each, PassingError | TimeoutError | ConnectionError) for each in origins(error))


def origins(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, however deep the client wrapped it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
