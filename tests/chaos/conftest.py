import pytest

from tests.chaos.matrix import Calm


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """A cluster, and what an undisturbed run of stand-in work makes in its driver."""
    calm = Calm(tmp_path_factory.mktemp("chaos"), timed=False)
    yield calm
    calm.close()
