"""Scheduling policies: whom to admit next, and whom to preempt. One entry of `SCHEDULING_POLICIES` each."""

from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

from sim.engine.request import Request


class WaitingQueue(Protocol):
    def push(self, request: Request) -> None:
        """A new arrival."""

    def put_back(self, request: Request) -> None:
        """A preempted request."""

    def head(self) -> Request | None:
        """The request to admit next; the queue is not empty. None: of all that wait none may be admitted now."""

    def pop(self) -> Request:
        """Remove and return the head."""

    def remove(self, request: Request) -> bool:
        """It waits no more, wherever it stands; whether it did."""

    def place(self, request: Request) -> tuple[float, ...]:
        """Where it stands: whose place is less is served first."""

    def __len__(self) -> int: ...


class FirstComeFirstServed(OrderedDict[Request, int]):
    """Arrivals at the end, preempted requests at the front; each with its ticket, which rise."""

    def __init__(self) -> None:
        super().__init__()
        self._first = self._last = 0

    def push(self, request: Request) -> None:
        self._last += 1
        self[request] = self._last

    def put_back(self, request: Request) -> None:
        self._first -= 1
        self[request] = self._first
        self.move_to_end(request, last=False)

    def head(self) -> Request:
        return next(iter(self))

    def pop(self) -> Request:  # type: ignore[override]
        return self.popitem(last=False)[0]

    def remove(self, request: Request) -> bool:
        if request not in self:
            return False
        del self[request]
        return True

    def place(self, request: Request) -> tuple[float, ...]:
        return (self[request],)


class MostUrgentFirst:
    """By (priority, arrival, request_id), preempted requests like any other (vLLM `v1/core/sched/request_queue.py`)."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, int, Request]] = []
        self._there: set[Request] = set()  # others in the heap were removed
        self._pushed = 0

    def push(self, request: Request) -> None:
        # Of one request two attempts may stand here, of which one was removed: their order must not ask for more.
        self._pushed += 1
        heappush(self._heap, (*_order(request), self._pushed, request))
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

    def place(self, request: Request) -> tuple[float, ...]:
        return _order(request)

    def __len__(self) -> int:
        return len(self._there)


def _order(request: Request) -> tuple[int, float, int]:
    """The less, the more urgent."""
    return -request.priority, request.arrival, request.request_id


def _last_admitted(running: dict[Request, None]) -> Request:
    return next(reversed(running))


def _least_urgent(running: dict[Request, None]) -> Request:
    return max(running, key=_order)


# Policy → (its queue, whom it preempts when blocks run out).
SCHEDULING_POLICIES: dict[str, tuple[Callable[[], WaitingQueue], Callable[[dict[Request, None]], Request]]] = {
    "fcfs": (FirstComeFirstServed, _last_admitted),
    "priority": (MostUrgentFirst, _least_urgent),
}
