"""Scheduling policies: whom to admit next, and whom to preempt. One entry of `SCHEDULING_POLICIES` each."""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

from sim.engine.request import Request


class WaitingQueue(Protocol):
    def push(self, request: Request) -> None:
        """A new arrival."""

    def put_back(self, request: Request) -> None:
        """A preempted request."""

    def head(self) -> Request:
        """The request to admit next; the queue is not empty."""

    def pop(self) -> Request:
        """Remove and return the head."""

    def __len__(self) -> int: ...


class FirstComeFirstServed(deque[Request]):
    """Arrivals at the end, preempted requests at the front."""

    push = deque.append
    put_back = deque.appendleft
    pop = deque.popleft

    def head(self) -> Request:
        return self[0]


class MostUrgentFirst:
    """By (priority, arrival, request_id), preempted requests like any other (vLLM `v1/core/sched/request_queue.py`)."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Request]] = []

    def push(self, request: Request) -> None:
        heappush(self._heap, (-request.priority, request.arrival, request.request_id, request))

    put_back = push

    def head(self) -> Request:
        return self._heap[0][3]

    def pop(self) -> Request:
        return heappop(self._heap)[3]

    def __len__(self) -> int:
        return len(self._heap)


def _last_admitted(running: dict[Request, None]) -> Request:
    return next(reversed(running))


def _least_urgent(running: dict[Request, None]) -> Request:
    return max(running, key=lambda request: (-request.priority, request.arrival, request.request_id))


# Policy → (its queue, whom it preempts when blocks run out).
SCHEDULING_POLICIES: dict[str, tuple[Callable[[], WaitingQueue], Callable[[dict[Request, None]], Request]]] = {
    "fcfs": (FirstComeFirstServed, _last_admitted),
    "priority": (MostUrgentFirst, _least_urgent),
}
