"""Has what all tests share: settings, which process runs which tests in which order, and fixtures of a session."""

import gc
import logging
import os
import shutil
import uuid
from pathlib import Path

import pytest
from hypothesis import settings

from tests.speed import LONGEST_FIRST, ON_CLUSTER, SLOW, file_of, group_of, is_quick

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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let each worker process of pytest-xdist take whole groups of tests: by file, so that a file's fixtures are made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        # Not by marks and `--dist loadgroup`: pytest-xdist 3.8 hands them on by an attribute that pytest 9.2 no longer reads.
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return ByGroup(config, log)


def pytest_ignore_collect(collection_path, config):
    """Leave out the files of which no test is quick where those alone are asked for: their imports are a third of the time."""
    file = os.path.relpath(collection_path, config.rootpath)
    return True if config.option.markexpr == "quick" and file in SLOW else None


@pytest.hookimpl(tryfirst=True)  # before those that select by mark
def pytest_collection_modifyitems(items):
    """Mark the quick tests, and put the files that take long first."""
    for item in items:
        if is_quick(item.nodeid):
            item.add_marker(pytest.mark.quick)
        if "ray_here" in item.fixturenames and group_of(item.nodeid) != ON_CLUSTER:
            raise pytest.UsageError(f"{item.nodeid}: uses the session's Ray cluster; tests.speed.GROUPS has to name its file")
    places = {file: place for place, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(file_of(item.nodeid), len(places)))


def pytest_collection_finish(session):
    """Let garbage collection pass over what is imported: looking through these millions of objects takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def pytest_sessionfinish(session):
    """Let Python take apart at its end what it imported, without which libraries say that they leak."""
    gc.unfreeze()


def pytest_runtest_setup(item):
    """Let the drivers of tests be found: whatever imports the command line keeps the current folder out of its children's path."""
    os.environ.pop("PYTHONSAFEPATH", None)


@pytest.fixture(scope="session", autouse=True)
def process_outlives_commands():
    """Commands that tests call in this process do not end it, as one whose threads still compute otherwise does."""
    from promptmill.actors.flow import in_process_pools

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(in_process_pools, "still_at_work", lambda patience_s=0.0: False)
        yield


@pytest.fixture(scope="session")
def ray_here():
    """One Ray cluster for all tests of a session; what runs inside finds it initialised and leaves it so."""
    from promptmill.actors.local_ray.cluster import cluster

    with cluster("local"):
        yield


@pytest.fixture(scope="session")
def s3_endpoint():
    """An S3 server on loopback; one for each process that runs tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint, monkeypatch):
    """A fresh bucket on it, as a URI that promptmill opens without more being said."""
    import boto3
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # one that another test made knows another endpoint
    bucket = f"b{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


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
