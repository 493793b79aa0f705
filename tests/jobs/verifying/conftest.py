import dataclasses

import pytest

from promptmill.jobs.planning.plan import read_plan, write_plan
from promptmill.jobs.running.finishing import finish
from promptmill.shards.commits import read_records
from promptmill.shards.storage import join, put
from tests.jobs.verifying.damage import problems_of


@pytest.fixture
def plan(clean_planned):
    return clean_planned[0]


@pytest.fixture
def mixed(plan, planned):
    """Shard 0 was committed before a change that was accepted."""
    output = planned
    other = dataclasses.replace(plan, inputs={**plan.inputs, "manifest": ["another"]})
    write_plan(output, other, earlier=True)
    write_plan(output, dataclasses.replace(plan, accepted={other.fingerprint: ["manifest.0: was another"]}))
    earlier = dataclasses.replace(read_records(output)[0], fingerprint=other.fingerprint)
    put(join(output, "commits/000000.json"), earlier.to_json())
    finish(read_plan(output), output, read_records(output))
    assert problems_of(output) == []
    return output
