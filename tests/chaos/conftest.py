import pytest

from tests.chaos.matrix import Calm


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """An undisturbed run of stand-in work on a cluster of its own."""
    calm = Calm(tmp_path_factory.mktemp("chaos"))
    yield calm
    calm.close()
