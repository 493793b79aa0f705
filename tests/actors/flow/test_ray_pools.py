import asyncio
import os
import socket
import time

import pytest
import ray

from promptmill.actors.flow.actor_slots import AbortError, DiedError, MemoryRanOutError, UnfitError
from promptmill.actors.flow.placement import Room, Seat
from promptmill.actors.flow.ray_pools import RayActor, _load, _placed
from promptmill.actors.local_ray.cluster import cluster
from promptmill.actors.local_ray.memory_limits import KernelKills
from promptmill.actors.pool_sizes import ClusterError
from promptmill.pipelines.work.errors import FatalError, MisfitError
from promptmill.shards.storage import StorageError

pytestmark = pytest.mark.usefixtures("ray_here")


@ray.remote(max_restarts=0, num_cpus=0.1)
class Fragile:
    def work(self, how):
        if how == "exit":
            os._exit(1)
        if how == "fatal":
            raise FatalError("CUDA error: an illegal memory access")
        if how == "misfit":
            raise MisfitError.of(3)
        if how == "full":
            raise StorageError("out/parts/x.parquet: No space left on device")
        if how == "error":
            raise KeyError("this unit is odd")
        return how


async def _call(handle, how):
    return await handle.work.remote(how)


def called(how):
    actor = RayActor(Fragile.remote(), _call)
    try:
        return asyncio.run(actor.call(how))
    finally:
        actor.kill()


def test_a_result_comes_back():
    assert called("fine") == "fine"


def test_a_process_that_ends_has_died_and_its_node_has_not():
    with pytest.raises(DiedError) as caught:
        called("exit")
    assert not caught.value.by_infrastructure
    assert "\n" not in str(caught.value)


def test_a_process_that_ends_as_the_kernel_kills_for_memory_has_died_of_memory(tmp_path):
    (tmp_path / "proc").mkdir()
    counter = tmp_path / "proc" / "vmstat"
    counter.write_text("oom_kill 0\n")
    kills = KernelKills(tmp_path)
    for count, begin in ((0, ""), (1, "out of memory: the kernel has ended a process of this run")):
        counter.write_text(f"oom_kill {count}\n")
        actor = RayActor(Fragile.remote(), _call, kills=kills)
        with pytest.raises(DiedError) as caught:
            asyncio.run(actor.call("exit"))
        assert str(caught.value).startswith(begin) and "\n" not in str(caught.value)
        assert ("runtime.generators" in str(caught.value)) == bool(count)


def test_a_fatal_error_counts_as_a_death_with_its_reason():
    with pytest.raises(DiedError, match="an illegal memory access") as caught:
        called("fatal")
    assert not isinstance(caught.value, MemoryRanOutError)


def test_a_batch_that_does_not_fit_counts_as_a_death_of_memory_that_pieces_do_not_mend():
    with pytest.raises(UnfitError, match=r"out of memory at batch 3; set model\.batch lower"):
        called("misfit")


def test_an_output_that_cannot_be_written_ends_the_run_and_blames_no_unit():
    with pytest.raises(AbortError, match="No space left on device"):
        called("full")


def test_an_error_passes_as_it_was_raised():
    with pytest.raises(KeyError, match="this unit is odd"):
        called("error")


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(*args, **kwargs):
        raise ConnectionError("Failed to connect\nto anything")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterError, match=r"^Ray at auto: Failed to connect$"), cluster("auto"):
        pass
    with pytest.raises(ClusterError, match=r"^Ray at 127.0.0.1:1: nothing answers there"), cluster("127.0.0.1:1"):
        pass


def test_a_metrics_port_that_is_taken_is_one_line_and_ray_is_not_started(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"^runtime.metrics_port {port}: .* in use"), cluster(None, metrics_port=port):
            pass


def test_a_metrics_port_is_asked_of_a_cluster_that_is_started_here_only(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    asked = []

    def refuse(*args, **kwargs):
        asked.append(kwargs.get("_metrics_export_port"))
        raise ConnectionError("no")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    for address in (None, "auto"):
        with pytest.raises(ClusterError), cluster(address, metrics_port=port):
            pass
    assert asked == [port, None]


@ray.remote(num_cpus=1)
class Busy:
    def work(self):
        time.sleep(600)

    def load(self):
        time.sleep(600)


def test_a_scorer_that_fits_nowhere_takes_the_place_of_a_generator_which_is_no_fault_of_its_unit(ray_here):
    async def go():
        room = Room(feeding=4, patience_s=10)
        holding = int(ray.cluster_resources()["CPU"])
        generators = []
        for _ in range(holding):
            handle = Busy.remote()
            seat = Seat(lambda handle=handle: ray.kill(handle))
            room.generator_up(seat)
            generators.append(
                RayActor(handle, lambda handle: handle.work.remote(), seat, lambda seat=seat: room.generator_gone(seat))
            )
        calls = [asyncio.ensure_future(generator.call()) for generator in generators]
        await room.before_scorer()
        scorer = Busy.remote()
        await asyncio.wait_for(room.scorer_waits(_placed(scorer)), 60)
        await asyncio.wait_for(room.before_generator(), 1)
        # On a busy machine the news of a death takes its time; a second one would come with it.
        await asyncio.wait(calls, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        done, going = await asyncio.wait(calls, timeout=1)
        (lost,) = done
        with pytest.raises(DiedError) as died:
            await lost
        assert died.value.by_infrastructure and len(going) == holding - 1
        for call in going:
            call.cancel()
        for generator in generators:
            generator.kill()
        ray.kill(scorer)

    asyncio.run(go())


@pytest.mark.parametrize("placed_first", [False, True])
def test_a_generator_that_is_dismissed_before_it_is_up_is_no_failure_to_start(ray_here, placed_first):
    async def go():
        handle = Busy.options(num_cpus=0 if placed_first else 1000).remote()
        placed = _placed(handle)
        if placed_first:
            await asyncio.wait_for(asyncio.wait({placed}), 60)
        seat = Seat(lambda: ray.kill(handle))
        seat.dismiss()
        await asyncio.wait({placed}, timeout=60)
        with pytest.raises(DiedError) as died:
            await asyncio.wait_for(_load(handle, lambda said: None, seat), 60)
        assert died.value.by_infrastructure

    asyncio.run(go())
