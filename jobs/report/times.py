"""Reads the times of a dataset's runs from stats/: seconds by stage, units, hosts, and when each run began."""

import datetime
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import FailFast, Field

from promptmill.configs.errors import shown
from promptmill.configs.json_values import read_json
from promptmill.jobs.figures.sampling import spread
from promptmill.shards.storage import TooLargeError, get, join, names

MOST_FILES = 256  # of a thousand units each
READERS = 8
MOST_BYTES = 64 * 2**20  # of one file
LONGEST_S = 1e9  # that a stage of a unit may take, in seconds
MOST_VALUES = 100_000  # of one line


@dataclass(frozen=True)
class _Line:
    """Holds what the report needs of a line of stats; other versions of promptmill write other keys beside these."""

    host: str
    seconds: Annotated[dict[str, Annotated[float, Field(ge=0, lt=LONGEST_S)]], FailFast()]


@dataclass(frozen=True)
class Times:
    """What stats/ says.

    Attributes:
        stages: Seconds in actors, by stage, the longest first.
        units: That were looked at; `files` of `all_files`.
        hosts: Units finished, by host.
        runs: When each began, UTC, to the second; those that left any stats.
        problems: What could not be read, a line each.
    """

    stages: Mapping[str, float] = field(default_factory=dict)
    units: int = 0
    files: int = 0
    all_files: int = 0
    hosts: Mapping[str, int] = field(default_factory=dict)
    runs: Sequence[datetime.datetime] = ()
    problems: Sequence[str] = ()


def read_times(output: str) -> Times:
    """Return the times of all runs on an output."""
    found = [name for name in names(join(output, "stats")) if name.endswith(".jsonl")]
    some = spread(found, MOST_FILES)
    stages: defaultdict[str, float] = defaultdict(float)
    hosts: Counter[str] = Counter()
    problems = []
    with ThreadPoolExecutor(READERS) as pool:
        for name, content in zip(some, pool.map(lambda name: _content(output, name), some), strict=True):
            try:
                if isinstance(content, TooLargeError):
                    raise content
                for line in (content or b"").splitlines():
                    unit = read_json(_Line, line, MOST_VALUES, "ignore")
                    for stage, seconds in unit.seconds.items():
                        stages[stage] += seconds
                    hosts[unit.host] += 1
            except ValueError as error:
                problems.append(f"stats/{name}: not the stats of units: {shown(_said(error), 200)}")
    longest = {stage: seconds for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]) if seconds > 0}
    runs = sorted({began for name in found if (began := _began(name))})
    return Times(longest, hosts.total(), len(some), len(found), dict(hosts.most_common()), runs, problems)


def _said(error: ValueError) -> str:
    return error.said if isinstance(error, TooLargeError) else " ".join(str(error).split())


def _content(output: str, name: str) -> bytes | TooLargeError | None:
    try:
        return get(join(output, "stats", name), MOST_BYTES)
    except FileNotFoundError:
        return None
    except TooLargeError as error:
        return error


def _began(name: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(name.split("-")[0].split(".")[0], "%Y%m%dT%H%M%S").replace(tzinfo=datetime.UTC)
    except ValueError:
        return None
