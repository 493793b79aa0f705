"""Holds the bounded channels between lanes."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """Queues items, with a limit for `put` and none for `give_back`, since lanes that give back also empty the channel."""

    def __init__(self, limit: int):
        self._limit, self._items = limit, deque[Item]()
        self._getters, self._putters = deque[asyncio.Future[None]](), deque[asyncio.Future[None]]()
        self._closed = False

    async def put(self, item: Item, least: int = 0) -> None:
        """Queue an item once there are fewer than the limit, or than `least`, where that is more."""
        while len(self._items) >= max(self._limit, least) and not self._closed:
            await _wait_in(self._putters)
        self.give_back(item)

    def give_back(self, item: Item) -> None:
        self._items.append(item)
        _wake_one(self._getters)

    async def get(self) -> Item | None:
        """Return the next item; None once the channel is closed and empty."""
        while not self._items:
            if self._closed:
                return None
            await _wait_in(self._getters)
        item = self._items.popleft()
        _wake_one(self._putters)
        return item

    def close(self) -> None:
        self._closed = True
        for waiters in (self._getters, self._putters):
            while waiters:
                _wake_one(waiters)

    def __len__(self) -> int:
        return len(self._items)


async def _wait_in(waiters: "deque[asyncio.Future[None]]") -> None:
    turn = asyncio.get_running_loop().create_future()
    waiters.append(turn)
    try:
        await turn
    except asyncio.CancelledError:
        if turn.done() and not turn.cancelled():
            _wake_one(waiters)  # the turn of this waiter goes to the next one
        raise


def _wake_one(waiters: "deque[asyncio.Future[None]]") -> None:
    while waiters:
        turn = waiters.popleft()
        if not turn.done():
            turn.set_result(None)
            return
