"""Who may be admitted where few adapters run at once: requests of others are passed over, and keep their place.

The rule is vLLM's (`vllm/v1/core/sched/scheduler.py`, `max_loras`): a step computes at most so many distinct adapters.
A waiting request whose adapter would be one more is skipped, and those behind it are looked at; one that may run and
finds no blocks stops the round, as ever. Requests of the base model have no adapter and are never skipped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from sim.engine.ordering.waiting_queue import WaitingQueue
from sim.engine.request import Request


class AdapterQueue:
    """A `WaitingQueue` that knows which adapters run. Its `head` is the first that may be admitted.

    Beside the queue of all there is one for each adapter, so that nobody who is passed over is visited.
    """

    def __init__(self, make_queue: Callable[[], WaitingQueue], limit: int) -> None:
        self._limit = limit
        self._all = make_queue()
        self._of: defaultdict[str | None, WaitingQueue] = defaultdict(make_queue)  # none of them empty
        self._running: Counter[str] = Counter()  # adapter → requests that run

    def push(self, request: Request) -> None:
        self._all.push(request)
        self._of[request.adapter].push(request)

    def put_back(self, request: Request) -> None:
        self._all.put_back(request)
        self._of[request.adapter].put_back(request)

    def head(self) -> Request | None:
        if len(self._running) < self._limit:
            return self._all.head() if len(self._all) else None
        queues = (self._of.get(adapter) for adapter in (None, *self._running))
        heads = [head for queue in queues if queue is not None and (head := queue.head()) is not None]
        return min(heads, key=self._all.place, default=None)

    def pop(self) -> Request:
        request = self.head()
        assert request is not None
        if request is self._all.head():
            self._all.pop()  # not `remove`: who is admitted first may say who goes next (`length_buckets.py`)
            self._leaves_own(request)
        else:
            self.remove(request)
        return request

    def remove(self, request: Request) -> bool:
        if not self._all.remove(request):
            return False
        self._leaves_own(request)
        return True

    def _leaves_own(self, request: Request) -> None:
        queue = self._of[request.adapter]
        queue.remove(request)
        if not len(queue):
            del self._of[request.adapter]

    def place(self, request: Request) -> tuple[float, ...]:
        return self._all.place(request)

    def __len__(self) -> int:
        return len(self._all)

    def may_run(self, request: Request) -> bool:
        """Whether its adapter runs, or another one may."""
        adapter = request.adapter
        return adapter is None or adapter in self._running or len(self._running) < self._limit

    def runs(self, request: Request) -> None:
        """It was admitted."""
        if request.adapter is not None:
            self._running[request.adapter] += 1

    def leaves(self, request: Request) -> None:
        """No later step computes it, unless it is admitted again."""
        adapter = request.adapter
        if adapter is not None:
            self._running[adapter] -= 1
            if not self._running[adapter]:
                del self._running[adapter]
