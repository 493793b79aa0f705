"""Has what several files of this folder share."""

import pytest

from promptmill.shards import object_stores, retries


@pytest.fixture
def quick(monkeypatch):
    """No long pauses, no long waits, and every fault is met by our own tries rather than by the client's."""
    for module, name, value in [
        (retries, "FIRST_PAUSE", 0.01),
        (retries, "LONGEST_PAUSE", 0.05),
        (retries, "TRIES", 30),
        (object_stores, "REQUEST_TRIES", 1),
        (object_stores, "READ_TIMEOUT", 0.4),
    ]:
        monkeypatch.setattr(module, name, value)
