"""What is wrong with a dataset, and how it comes to be."""

from promptmill.jobs.verifying.problems import Problem
from promptmill.jobs.verifying.verify import verify
from promptmill.shards.storage import get, join, put


def problems_of(output):
    return [problem for problem in verify(output) if isinstance(problem, Problem)]


def flip(output, path, at=-700):
    content = bytearray(get(join(output, path)))
    content[at] ^= 1
    put(join(output, path), bytes(content))
