import asyncio
import threading
import time

import pytest

from promptmill.actors.flow.actor_slots import AbortError, UnfitError
from promptmill.actors.flow.in_process_pools import Threads, WorkerHere, still_at_work
from promptmill.pipelines.work.errors import FatalError, MisfitError
from promptmill.shards.parts import PartError
from promptmill.shards.storage import StorageError


class Unit:
    name = "000000-00007"


def called(work, deadline_s=60.0, ended=lambda: None):
    async def call():
        worker = WorkerHere(Threads("test"), lambda unit, alone: work(), ended, deadline_s)
        try:
            return await worker.call(Unit, False)
        finally:
            worker.kill()

    return asyncio.run(call())


def raising(error):
    def work():
        raise error

    return work


def test_a_result_comes_back_from_another_thread():
    assert called(threading.get_ident) != threading.get_ident()


def test_a_batch_that_does_not_fit_is_a_death_of_the_unit_as_a_whole():
    with pytest.raises(UnfitError, match="out of memory at batch 3"):
        called(raising(MisfitError.of(3)))


ENDING = [
    FatalError("CUDA error: an illegal memory access"),
    StorageError("out/parts/x: No space left"),
    PartError("out/parts/x: is not there any more; deleted: run again"),
]


@pytest.mark.parametrize("error", ENDING)
def test_what_would_fail_again_in_this_process_ends_the_run(error):
    with pytest.raises(AbortError) as caught:
        called(raising(error))
    assert str(error) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("odd"), TimeoutError("the image's host said nothing")])
def test_whatever_else_a_worker_raises_is_a_fact_about_the_unit(error):
    with pytest.raises(type(error)) as caught:
        called(raising(error))
    assert caught.value.args == error.args


def test_a_unit_past_its_deadline_ends_the_run_and_is_named():
    go_on = threading.Event()
    try:
        with pytest.raises(AbortError, match=r"unit 000000-00007 is not done within runtime\.unit_deadline_s, 0\.05 s"):
            called(lambda: go_on.wait(30), deadline_s=0.05)
        assert still_at_work()
    finally:
        go_on.set()
    until = time.monotonic() + 10
    while still_at_work() and time.monotonic() < until:
        time.sleep(0.01)
    assert not still_at_work()


def test_a_worker_that_is_given_up_ends_after_the_call_under_way_and_once():
    order, go_on = [], threading.Event()

    async def call():
        threads = Threads("test")
        worker = WorkerHere(threads, lambda: go_on.wait(10) and order.append("call"), lambda: order.append("end"), 60.0)
        task = asyncio.create_task(worker.call())
        await asyncio.sleep(0.05)
        worker.kill()
        worker.kill()
        go_on.set()
        await task
        while threads.busy:
            await asyncio.sleep(0.01)

    asyncio.run(call())
    assert order == ["call", "end"]


def test_a_call_that_is_cancelled_disturbs_no_later_one():
    async def calls():
        threads, go_on = Threads("test"), threading.Event()
        first = asyncio.create_task(threads.call(go_on.wait, 10))
        second = asyncio.create_task(threads.call(lambda: "never"))
        await asyncio.sleep(0.05)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        go_on.set()
        return await threads.call(lambda: "fine")

    assert asyncio.run(calls()) == "fine"
