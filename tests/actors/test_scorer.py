"""What a scorer makes of errors: a unit's own, the storage's, and those of hardware that fails every later unit too."""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from promptmill.actors.encoding import Encoders
from promptmill.actors.flow import ray_pools
from promptmill.actors.flow.actor_slots import StartError, Starts
from promptmill.actors.flow.placement import Room
from promptmill.actors.pool_sizes import Sizes
from promptmill.actors.scorer import Scorer
from promptmill.configs.loading import load
from promptmill.pipelines.rendering import gpus, loading
from promptmill.pipelines.scoring import scorers, staging
from promptmill.pipelines.scoring.finishing import Onward
from promptmill.pipelines.work.errors import FatalError
from promptmill.pipelines.work.results import Rendered
from promptmill.shards.parts import PartError
from promptmill.shards.storage import StorageError
from tests.actors.test_encoding import work


@pytest.fixture
def scorer(monkeypatch):
    """A scorer, and a function that gives it an error to meet while it scores."""
    scorer = Scorer(SimpleNamespace())
    scorer._scorers = None

    def meets(error):
        def finish(*_):
            raise error

        monkeypatch.setattr(staging, "finish_in_stages", finish)

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


@pytest.mark.parametrize(("device", "workers", "shares"), [("cuda", "ray", [0.2]), ("cuda", "here", []), ("cpu", "ray", [0.2])])
def test_a_scorer_keeps_to_its_share_of_the_card(monkeypatch, device, workers, shares):
    limited = []
    monkeypatch.setattr(gpus, "keep_to_share", limited.append)
    monkeypatch.setattr(loading, "device_here", lambda: torch.device(device))
    monkeypatch.setattr(scorers, "load_scorers", lambda ranking, on, threads: limited[:] == shares or pytest.fail("too late"))
    monkeypatch.setattr("promptmill.actors.scorer.names", lambda folder: ["plan.json"])
    config = load("embedded", [f"runtime.workers={workers}", "runtime.scorer_gpus=0.2"])
    Scorer(SimpleNamespace(config=config, output="somewhere")).load()
    assert limited == shares


def test_a_scorer_encodes_in_more_threads_once_units_show_that_one_does_not_keep_up(monkeypatch):
    scorer = Scorer(SimpleNamespace())
    scorer._scorers, scorer._encoders = None, Encoders(generators=4, most=8)

    def finish(unit, rendered, scorers, recipe, earlier, spread):
        assert spread(work, [0.02] * 5) == [0.02] * 5
        return Onward(None)

    monkeypatch.setattr(staging, "finish_in_stages", finish)
    seen = []
    for rendering_s in (10, 0.1, 0.1):  # with the first unit, slow since the model warms up, one thread suffices
        scorer.finish(None, Rendered((), {"denoise": rendering_s}))
        seen.append(scorer._encoders.threads)
    assert seen == [1, 1, 1]
    scorer._encoders = Encoders(generators=4, most=8)
    for _ in range(2):
        scorer.finish(None, Rendered((), {"denoise": 0.2}))
    # A tenth of a second of work has to be done in a fortieth.
    assert 4 <= scorer._encoders.threads <= 8
    scorer._encoders.close()


@pytest.mark.parametrize(("generators", "scorers", "each"), [(8, 2, 4), (16, 1, 16), (3, 2, 2), (1, 1, 1)])
def test_a_scorer_on_ray_is_told_how_many_generators_it_serves(monkeypatch, generators, scorers, each):
    told = []

    class Kind:
        def options(self, **options):
            return SimpleNamespace(remote=lambda *arguments: told.append(arguments))

    async def nothing(*arguments, **named):
        return None

    monkeypatch.setattr(ray_pools, "_scorer", lambda kind: Kind())
    monkeypatch.setattr(ray_pools, "_placed", nothing)
    monkeypatch.setattr(ray_pools, "_load", nothing)
    recipe = SimpleNamespace(config=load("embedded", []))
    monkeypatch.setattr(ray_pools, "_kills_here", lambda recipe: False)
    room = SimpleNamespace(before_scorer=nothing, scorer_waits=lambda placed: placed, scorer_gone=lambda placed: None)
    sizes = Sizes(generators, 1.0, 0.0, scorers, 0.2, 0.0, 0.2)
    asyncio.run(ray_pools.scorers(recipe, sizes, room, None).start())
    assert told == [(recipe, each)]


def test_a_scorer_that_ray_does_not_take_ends_the_run_and_is_waited_for_by_nobody(monkeypatch):
    class Kind:
        def options(self, **options):
            return SimpleNamespace(remote=self.refuse)

        def refuse(self, *arguments):
            raise RuntimeError("Ray is gone")

    monkeypatch.setattr(ray_pools, "_scorer", lambda kind: Kind())
    monkeypatch.setattr(ray_pools, "_kills_here", lambda recipe: False)
    recipe = SimpleNamespace(config=load("embedded", []))

    async def start():
        pool = ray_pools.scorers(recipe, Sizes(4, 1.0, 0.0, 2, 0.2, 0.0, 0.2), Room(4), None)
        await asyncio.wait_for(Starts(pool).start(), 20)

    with pytest.raises(StartError, match="Ray is gone"):
        asyncio.run(start())
