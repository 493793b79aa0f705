import os
from pathlib import Path

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def ray_here():
    """One Ray cluster for all tests of a session; what runs inside finds it initialised and leaves it so."""
    from jobs.cluster import cluster

    with cluster("local"):
        yield


@pytest.fixture
def quickstart():
    return Path(__file__).parents[2] / "configs" / "presets" / "quickstart"
