"""A queue whose order is a number of each request that never changes."""

from collections.abc import Callable
from heapq import heappop, heappush

from sim.engine.request import Request


class KeyedQueue:
    """A `WaitingQueue` by `key`, the least first, of equals the earlier arrival; preempted requests like any other.

    Two requests with equal places are the same: `key` need not tell them apart, their ids do.
    """

    def __init__(self, key: Callable[[Request], float]) -> None:
        self._key = key
        self._heap: list[tuple[float, float, int, int, Request]] = []
        self._there: set[Request] = set()  # others in the heap were removed
        self._pushed = 0

    def push(self, request: Request) -> None:
        # Of one request two attempts may stand here, of which one was removed: their order must not ask for more.
        self._pushed += 1
        heappush(self._heap, (*self.place(request), self._pushed, request))
        self._there.add(request)

    put_back = push

    def head(self) -> Request:
        while self._heap[0][4] not in self._there:
            heappop(self._heap)
        return self._heap[0][4]

    def pop(self) -> Request:
        request = self.head()
        heappop(self._heap)
        self._there.remove(request)
        return request

    def remove(self, request: Request) -> bool:
        if request not in self._there:
            return False
        self._there.remove(request)
        return True

    def place(self, request: Request) -> tuple[float, float, int]:
        return self._key(request), request.arrival, request.request_id

    def __len__(self) -> int:
        return len(self._there)
