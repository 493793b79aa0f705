"""An event loop whose clock jumps to the next timer, so that hours of waiting take no time, and a deadlock is an error at once."""

import asyncio
import selectors


class DeadlockError(AssertionError):
    """Everybody waits and no timer is set: nothing will ever happen again."""


class _Selector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise DeadlockError
            self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        super().__init__(_Selector())

    def time(self):
        return self._selector.now


def run(coroutine):
    """Run a coroutine in virtual time; returns its result and the seconds that seemed to pass."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result = runner.run(coroutine)
        return result, runner.get_loop().time()
