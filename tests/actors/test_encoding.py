"""That a scorer's threads are as many as its generators need, whatever is measured, and never change a result."""

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptmill.actors import encoding
from promptmill.actors.encoding import Encoders


def work(seconds):
    """Keep a thread's clock running; return the argument."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
    return seconds


class Clocks:
    """Stands in for the clocks: a piece of work takes `piece_s` of its thread, and the scorer waits for all of it."""

    def __init__(self, piece_s):
        self.now, self.piece_s = 0.0, piece_s
        self.monotonic = self.thread_time = lambda: self.now

    def piece(self, value):
        self.now += self.piece_s
        return value


@given(
    piece=st.floats(0.001, 1),
    scoring=st.floats(0, 1),
    rendering=st.floats(0.1, 100),
    generators=st.integers(1, 8),
    units=st.integers(1, 5),
)
def test_there_are_threads_to_do_the_work_in_half_of_the_time_that_scoring_leaves(piece, scoring, rendering, generators, units):
    clocks = Clocks(piece)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "time", clocks)
        patch.setattr(encoding, "ThreadPoolExecutor", InTurn)
        encoders = Encoders(generators, most=64)
        for _ in range(units):
            assert encoders.map(clocks.piece, range(10)) == [*range(10)]
            encoders.keep_up(rendering, 10 * piece + scoring)
    left = max(rendering / generators - scoring, rendering / generators / 4) / 2
    share = 10 * piece / left  # of one thread
    assert encoders.threads == pytest.approx(min(64, max(1, share)), abs=1.001)
    assert encoders.threads >= min(64, share) - 0.001


class InTurn:
    """Stands in for threads, which have clocks of their own."""

    def __init__(self, threads, name):
        self.map = map

    def shutdown(self): ...


def test_as_many_pieces_of_work_run_at_once_as_there_are_threads_and_the_order_stays():
    encoders = Encoders(4, most=3)
    assert encoders.map(lambda one: (one, threading.current_thread().name), [1]) == [(1, "MainThread")]
    encoders.map(work, [0.01])
    encoders.keep_up(0.001, 3600)  # an hour beside the work: whatever a busy machine makes of the work, threads are too few
    assert encoders.threads == 3
    beside = threading.Barrier(3)
    assert encoders.map(lambda number: beside.wait(20) * 0 + number, range(9)) == [*range(9)]
    encoders.close()


def test_threads_go_once_half_of_them_would_do_and_come_back_only_where_the_work_has_doubled():
    clocks = Clocks(1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "time", clocks)
        patch.setattr(encoding, "ThreadPoolExecutor", InTurn)
        encoders = Encoders(1, most=64)
        seen = []
        for rendering in [5.0] * 4 + [1000.0] * 4 + [5.0, 1000.0] * 20:
            encoders.map(clocks.piece, range(10))
            encoders.keep_up(rendering, 10.0)
            seen.append(encoders.threads)
    assert seen[3] == 4 and seen[7] == 1
    changes = sum(one != other for one, other in itertools.pairwise(seen))
    assert changes <= 3, "the number of threads swings"


def test_a_unit_that_took_no_time_changes_nothing():
    encoders = Encoders(4)
    encoders.keep_up(0.0, 0.0)
    assert encoders.threads == 1
