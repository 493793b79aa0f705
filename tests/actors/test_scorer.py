"""What a scorer makes of errors: a unit's own, the storage's, and those of hardware that fails every later unit too."""

import threading
from types import SimpleNamespace

import pytest
import torch

from promptmill.actors.scorer import ENCODERS, Scorer
from promptmill.configs.loading import load
from promptmill.pipelines.rendering import gpus, loading
from promptmill.pipelines.scoring import durable_passes, scorers
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


@pytest.mark.parametrize(
    ("device", "workers", "shares", "threads"),
    [("cuda", "ray", [0.2], ENCODERS), ("cuda", "here", [], ENCODERS), ("cpu", "ray", [0.2], 1)],
)
def test_beside_a_gpu_a_scorer_keeps_to_its_share_of_the_card_and_encodes_in_several_threads(
    monkeypatch, device, workers, shares, threads
):
    limited, beside = [], threading.Barrier(threads)
    monkeypatch.setattr(gpus, "keep_to_share", limited.append)
    monkeypatch.setattr(loading, "device_here", lambda: torch.device(device))
    monkeypatch.setattr(scorers, "load_scorers", lambda ranking, on, threads: limited[:] == shares or pytest.fail("too late"))
    monkeypatch.setattr("promptmill.actors.scorer.names", lambda folder: ["plan.json"])
    config = load("embedded", [f"runtime.workers={workers}", "runtime.scorer_gpus=0.2"])
    scorer = Scorer(SimpleNamespace(config=config, output="somewhere"))
    scorer.load()
    assert limited == shares
    # As many at once as there are threads, or the barrier breaks.
    assert [*scorer._spread(lambda number: beside.wait(20) * 0 + number, range(threads))] == [*range(threads)]
