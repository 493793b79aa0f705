import dataclasses
import shutil

import pytest

from promptmill.jobs.planning.plan import read_plan, write_plan
from promptmill.jobs.running.finishing import finish
from promptmill.shards.commits import read_records
from promptmill.shards.storage import join, put
from tests.jobs.datasets import planned_dataset
from tests.jobs.verifying.damage import problems_of


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return planned_dataset(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def plan(clean):
    return clean[0]


@pytest.fixture
def output(clean, tmp_path):
    return str(shutil.copytree(clean[1], tmp_path / "out"))


@pytest.fixture
def mixed(plan, output):
    """Shard 0 was committed before a change that was accepted."""
    other = dataclasses.replace(plan, inputs={**plan.inputs, "manifest": ["another"]})
    write_plan(output, other, earlier=True)
    write_plan(output, dataclasses.replace(plan, accepted={other.fingerprint: ["manifest.0: was another"]}))
    earlier = dataclasses.replace(read_records(output)[0], fingerprint=other.fingerprint)
    put(join(output, "commits/000000.json"), earlier.to_json())
    finish(read_plan(output), output, read_records(output))
    assert problems_of(output) == []
    return output
