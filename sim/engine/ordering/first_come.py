"""First come, first served."""

from collections import OrderedDict

from sim.engine.config import EngineConfig
from sim.engine.ordering.waiting_queue import Ordering, last_admitted
from sim.engine.request import Request


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


def first_come(config: EngineConfig) -> Ordering:
    return Ordering(FirstComeFirstServed, last_admitted)
