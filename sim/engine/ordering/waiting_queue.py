"""What every order of those who wait is to the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from sim.engine.ordering.service import Service
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


class Ordering(NamedTuple):
    """One engine's order: `make_queue` makes as many queues as its requests are parted into, which share what the order
    must know of all; `choose_victim` says who of the running is preempted when blocks run out; `service` is told who
    comes, goes and decodes, where the order depends on that."""

    make_queue: Callable[[], WaitingQueue]
    choose_victim: Callable[[dict[Request, None]], Request]
    service: Service | None = None


def last_admitted(running: dict[Request, None]) -> Request:
    """Whom most orders preempt: who was admitted first always goes on, so that somebody ends whatever the order."""
    return next(reversed(running))
