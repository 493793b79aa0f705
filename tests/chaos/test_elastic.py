"""Pools that grow, as nodes join or as units wait, and shrink as nodes go, while a run of stand-in work goes on."""

import os
import signal
import time
from contextlib import contextmanager

import pytest

from tests.chaos.site import HERE, problems, published


@contextmanager
def joining(calm, driver):
    """A node that comes while a driver renders."""
    node = calm.join()
    try:
        yield node
    finally:
        calm.cluster.remove_node(node, allow_graceful=False)


def rendering(site):
    """By node, the processes that have rendered there."""
    log = site.notes / "rendered"
    found = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        _, _, pid, node = line.split()
        found.setdefault(node, set()).add(pid)
    return found


def wait_for(site, driver, nodes):
    until = time.monotonic() + 180
    while len(rendering(site)) < nodes:
        assert time.monotonic() < until and driver.poll() is None, "the pool did not grow"
        time.sleep(0.05)


def test_generators_join_with_a_node_and_leave_with_it_and_the_bytes_are_the_same(calm):
    site = calm.site("--generators", "1:9", "--seconds", "0.5", "--nodes", "2")
    with site.driver() as driver:
        wait_for(site, driver, 1)
        before = sum(map(len, rendering(site).values()))
        assert before <= 2, "more generators than one node has room for"
        with joining(calm, driver) as node:
            wait_for(site, driver, 2)
            for info in node.all_processes["raylet"]:
                os.kill(info.process.pid, signal.SIGKILL)
            assert driver.wait(180) == 0
    assert published(site.out) == calm.bytes and not problems(site.out)


def test_a_node_of_another_kind_of_hardware_steps_back_and_the_others_go_on(calm):
    site = calm.site("--generators", "1:4", "--seconds", "0.8", "--kinds")
    with site.driver() as driver:
        wait_for(site, driver, 1)
        with joining(calm, driver):
            assert driver.wait(180) == 0
    assert len(rendering(site)) == 1, "units were rendered on two kinds of hardware"
    assert published(site.out) == calm.bytes and not problems(site.out)


@pytest.mark.parametrize("where", ["on Ray", HERE])
def test_scorers_that_come_as_units_wait_for_them_change_no_byte(calm, where):
    site = calm.site("--seconds", "0.02", "--scoring", "1", "--most-scorers", "3")
    site.address = HERE if where == HERE else site.address
    assert site.finish() == 1
    up = (site.notes / "scorers").read_text().splitlines()
    assert 2 <= len(up) <= 3, "the pool did not grow"
    assert {line.split(" ", 1)[1] for line in (site.notes / "scored").read_text().splitlines()} <= {*up}
    assert published(site.out) == calm.bytes and not problems(site.out)
