"""A finished dataset as the tests of verify look at it."""

import dataclasses

from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.verify import Verified, verify
from promptmill.shards.commits import CommitRecord
from promptmill.shards.index import encode_index
from promptmill.shards.storage import get, join, put

FIRST = "000000-00000-0000"


def problems_of(output) -> list[str]:
    *problems, verified = verify(output)
    assert isinstance(verified, Verified) and verified.problems == len(problems)
    assert all(isinstance(problem, Problem) and "\n" not in str(problem) for problem in problems)
    return [str(problem) for problem in problems]


def rewrite_record(output, number=0, index=True, **values):
    """Put another record in place, and the index that goes with it."""
    record = dataclasses.replace(record_of(output, number), **values)
    put(join(output, f"commits/{number:06d}.json"), record.to_json())
    if index:
        put(join(output, "index.json"), encode_index([record_of(output, shard_) for shard_ in range(3)]))


def record_of(output, number):
    """A record as it lies there, whatever files it names: only `verify` reads such."""
    return CommitRecord.from_json(get(join(output, f"commits/{number:06d}.json")))
