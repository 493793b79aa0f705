import logging
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# Read once, by whoever imports huggingface_hub first: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Likewise by Ray: its nodes report metrics each second, not every ten, so that tests of them need not wait.
os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112

# Machines that run this are shared: a slow example says nothing about the code.
settings.register_profile("shared", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("shared")

# The S3 server of the tests says every request: what a test that fails has to say would be lost in thousands of lines.
logging.getLogger("werkzeug").setLevel(logging.ERROR)


def pytest_runtest_setup(item):
    """Let the drivers of tests be found: whatever imports the command line keeps the current folder out of its children's path."""
    os.environ.pop("PYTHONSAFEPATH", None)


@pytest.fixture(scope="session")
def ray_here():
    """One Ray cluster for all tests of a session; what runs inside finds it initialised and leaves it so."""
    from promptmill.actors.local_ray.cluster import cluster

    with cluster("local"):
        yield


@pytest.fixture
def quickstart():
    return Path(__file__).parents[1] / "configs" / "presets" / "quickstart"


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """A finished dataset of three shards, the second without a kept image."""
    from tests.shards.made import publish, shard

    folder = tmp_path_factory.mktemp("clean") / "out"
    publish(str(folder), [shard(0), shard(1, statuses=("rejected", "failed")), shard(2)])
    shutil.rmtree(folder / "parts")
    return folder


@pytest.fixture
def output(clean, tmp_path):
    return str(shutil.copytree(clean, tmp_path / "out"))


@pytest.fixture(scope="session")
def clean_planned(tmp_path_factory):
    from tests.jobs.datasets import planned_dataset

    return planned_dataset(tmp_path_factory.mktemp("planned"))


@pytest.fixture
def planned(clean_planned, tmp_path):
    return str(shutil.copytree(clean_planned[1], tmp_path / "out"))
