"""Does again what a remote storage failed at for a passing reason: a bounded number of times, with growing pauses.

A single request is tried again by the storage's own client (see `storage.REQUEST_TRIES`). What is left for here is what the
client cannot or does not: answers that break off, conflicts, uploads that stall, and outages longer than its patience.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")

TRIES = 8
FIRST_PAUSE = 0.5  # seconds; each pause is twice as long as the one before, less up to half of it by chance
LONGEST_PAUSE = 15.0  # seconds
LAST_TRY_WITHIN = 100.0  # seconds after the first try began; one that hangs ends by its own timeouts

PASSING_STATUS = frozenset({429, 500, 502, 503, 504})
PASSING_CODES = frozenset(
    {
        "409",  # a conflict that says no more
        "BadDigest",  # these three: what arrived is not what was sent
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "ConditionalRequestConflict",  # another write of the same file is under way
        "OperationAborted",
        "InternalError",
        "NoSuchUpload",  # an upload in parts whose end was acknowledged, but the answer was lost
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
    }
)

# Not the shared generator: a seeded run, or a forked worker, would pause like all others.
_chance = random.SystemRandom()


class GaveUpError(Exception):
    """Every try failed for a passing reason; the last one's error is the cause, the message says how often it was tried."""


def persistently(action: Callable[[], Result]) -> Result:
    """What an idempotent action returns, tried again while it fails for a passing reason.

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
    """Whether an error, or what it came from, is one that may be gone by the next try."""
    return any(_passes(each) for each in origins(error))


def origins(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, however deep the client wrapped it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def answer_code(error: BaseException) -> str | None:
    """The code of the S3 answer that an error stands for: NoSuchKey, or the status where the answer said no more."""
    response: Any = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _passes(error: BaseException) -> bool:
    code = answer_code(error)
    if code is not None:
        metadata: Any = getattr(error, "response", {}).get("ResponseMetadata", {})
        return code in PASSING_CODES or metadata.get("HTTPStatusCode") in PASSING_STATUS
    # Imported only once something failed: whoever works locally need not load an S3 client.
    import aiohttp
    from botocore import exceptions, parsers

    if isinstance(error, (exceptions.SSLError, aiohttp.ClientSSLError)):
        return False  # a certificate that is not trusted will not be trusted in a minute
    return isinstance(
        error,
        (
            TimeoutError,
            ConnectionError,
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            exceptions.IncompleteReadError,
            exceptions.FlexibleChecksumError,
            parsers.ResponseParserError,  # an answer that is no XML: a gateway's page, or one that broke off
            aiohttp.ClientConnectionError,
            aiohttp.ClientPayloadError,
        ),
    )
