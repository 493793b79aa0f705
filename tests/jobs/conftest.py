import os
import shutil
from pathlib import Path

import pytest

from tests.jobs.datasets import planned_dataset
from tests.shards.made import publish, shard

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def ray_here():
    """One Ray cluster for all tests of a session; what runs inside finds it initialised and leaves it so."""
    from promptmill.actors.local_ray.cluster import cluster

    with cluster("local"):
        yield


@pytest.fixture
def quickstart():
    return Path(__file__).parents[2] / "configs" / "presets" / "quickstart"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A finished dataset of three shards, the second without a kept image."""
    folder = tmp_path_factory.mktemp("clean") / "out"
    publish(str(folder), [shard(0), shard(1, statuses=("rejected", "failed")), shard(2)])
    shutil.rmtree(folder / "parts")
    return folder


@pytest.fixture
def output(clean, tmp_path):
    return str(shutil.copytree(clean, tmp_path / "out"))


@pytest.fixture(scope="module")
def clean_planned(tmp_path_factory):
    return planned_dataset(tmp_path_factory.mktemp("planned"))


@pytest.fixture
def planned(clean_planned, tmp_path):
    return str(shutil.copytree(clean_planned[1], tmp_path / "out"))
