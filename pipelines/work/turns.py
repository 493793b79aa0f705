"""Lets the threads of a process compute one after another.

Some settings of torch hold for the whole process: which precision fp32 has, whether kernels are chosen by timing, how many threads
MKL takes, in which dtype a model is built. A generator and a scorer in one process need different settings, so only one computes at
a time, and its bits are those of a process of its own.
"""

import threading
from collections import deque


class Turns:
    """Locks for the thread that has waited longest, so that a thread that takes turns without a pause leaves room for others.

    The thread that has the turn may take it again inside.
    """

    def __init__(self) -> None:
        self._lock, self._waiting = threading.Lock(), deque[threading.Lock]()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._lock:
            if self._owner in (None, me):
                self._owner, self._depth = me, self._depth + 1
                return
            called = threading.Lock()
            called.acquire()
            self._waiting.append(called)
        called.acquire()
        self._owner, self._depth = me, 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth:
                return
            if self._waiting:
                self._owner = -1  # the one that is called takes it
                self._waiting.popleft().release()
            else:
                self._owner = None


COMPUTING = Turns()
