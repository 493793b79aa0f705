"""What a scorer makes of errors: a unit's own, the storage's, and those of hardware that fails every later unit too."""

from types import SimpleNamespace

import pytest
import torch

from promptmill.actors.scorer import Scorer
from promptmill.pipelines.scoring import durable_passes
from promptmill.pipelines.work.errors import FatalError
from promptmill.shards.parts import PartError
from promptmill.shards.storage import StorageError


@pytest.fixture
def scorer(monkeypatch):
    """A scorer, and a function that gives it an error to meet while it scores."""
    scorer = Scorer(SimpleNamespace())
    scorer._scorers = None

    def meets(error):
        def finish(*_):
            raise error

        monkeypatch.setattr(durable_passes, "finish_durably", finish)

    return scorer, meets


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"),
    ],
    ids=["broken", "memory"],
)
def test_a_scorer_whose_gpu_fails_has_to_be_replaced_and_its_unit_is_not_at_fault(scorer, error):
    scorer, meets = scorer
    meets(error)
    with pytest.raises(FatalError) as raised:
        scorer.finish(None, None)
    assert str(raised.value) == f"{str(error).splitlines()[0]}, while scoring"


@pytest.mark.parametrize(
    "error",
    [ValueError("this image is no image"), StorageError("out of memory.png: no space"), PartError("cuda error: gone")],
    ids=repr,
)
def test_other_errors_stay_what_they_are(scorer, error):
    scorer, meets = scorer
    meets(error)
    with pytest.raises(type(error)) as raised:
        scorer.finish(None, None)
    assert raised.value is error
