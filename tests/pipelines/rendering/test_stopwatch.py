from typing import ClassVar

import pytest
import torch

from promptmill.pipelines.rendering.stopwatch import Stopwatch


class Event:
    """A CUDA event of a GPU that gets to it when a test says so, five milliseconds a kernel."""

    made: ClassVar[list["Event"]] = []

    def __init__(self, enable_timing):
        assert enable_timing
        self.at = None
        self.made.append(self)

    def record(self):
        self.at = 5 * (self.made.index(self) + 1)

    def query(self):
        return self.at <= Event.now

    def elapsed_time(self, end):
        return end.at - self.at


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.made, Event.now = [], 0
    return Event


def test_on_a_gpu_it_counts_the_gpus_time_once_the_gpu_has_come_that_far(gpu):
    watch = Stopwatch()
    for _ in range(2):
        with watch.running():
            pass
    assert watch.seconds == 0
    gpu.now = 10
    assert watch.seconds == pytest.approx(0.005)
    gpu.now = 20
    assert watch.seconds == watch.seconds == pytest.approx(0.010)


def test_on_a_cpu_it_counts_the_time_of_the_calls(monkeypatch):
    times = iter((1.0, 3.5, 10.0, 10.25))
    monkeypatch.setattr("promptmill.pipelines.rendering.stopwatch.time.monotonic", lambda: next(times))
    watch = Stopwatch()
    for _ in range(2):
        with watch.running():
            pass
    assert watch.seconds == pytest.approx(2.75)
