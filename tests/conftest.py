import logging
import os

from hypothesis import settings

# Read once, by whoever imports huggingface_hub first: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
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
