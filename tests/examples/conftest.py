import shutil

import pytest

from tests.examples.readme import ROOT


@pytest.fixture
def checkout(tmp_path):
    """A folder to stand in, with the examples as they lie in a checkout, so that `runs/` is the test's own."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path
