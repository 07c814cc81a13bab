"""A service that is reached over a network: a request takes time to get there, and its answer to come back.

A request's arrival is when its client sends it, its first token and finish when the client has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import simpy
from simpy.events import NORMAL

from sim.engine.clock import Instant
from sim.engine.request import Request
from sim.fleet.service import Service
from sim.fleet.world import FINISHED, OnEnd, World


class Way(NamedTuple):
    """Seconds and bytes of an answer's way back: its first token takes as long as its last one."""

    seconds: float
    size: int
    at_once: bool = False  # nothing is seen before all is there


class Route(Protocol):
    """How requests get to a service and answers back."""

    name: str

    def go(self, request: Request, there: Callable[[], None]) -> tuple[int, Callable[[], None]]:
        """Send a request; `there` is called when it is there, not before this returns. Returns its bytes, and what to
        call if it is to turn back."""

    def back(self, request: Request) -> Way:
        """Of a request that has ended."""

    def first_back(self, request: Request) -> float:
        """Seconds of its first token's way back, of a request that is there; inf: it comes with the last one."""

    def gone(self, request: Request) -> None:
        """The client of a request that is there has gone."""


class Hop:
    """A `Service` before another one."""

    def __init__(self, world: World, route: Route, inner: Callable[[OnEnd], Service], on_end: OnEnd) -> None:
        self._world = world
        self._route = route
        self._on_end = on_end
        self._going: dict[int, Callable[[], None]] = {}  # request_id → how to turn back
        self._beyond: dict[int, float] = {}  # request_id → the way back from here to its client, while it is there
        self._coming: dict[int, Instant] = {}  # request_id → when its answer has come
        self.inner = inner(self._ended)

    def submit(self, request: Request) -> None:
        sent = self._world.clock.now

        def there() -> None:
            del self._going[request.request_id]
            self._tell(request, sent, self._world.clock.now - sent, size, "to")
            self._beyond[request.request_id] = request.way_back
            request.way_back += self._route.first_back(request)
            self.inner.submit(request)

        size, self._going[request.request_id] = self._route.go(request, there)

    def abort(self, request: Request) -> None:
        number = request.request_id
        if number in self._going:
            self._going.pop(number)()
        elif number in self._coming:
            self._world.clock.abandon(self._coming.pop(number))
        else:
            del self._beyond[number]
            self._route.gone(request)
            self.inner.abort(request)

    def close(self, end: float) -> None:
        self.inner.close(end)

    def _ended(self, request: Request, status: str) -> None:
        clock, way = self._world.clock, self._route.back(request)
        ended, beyond = clock.now, self._beyond.pop(request.request_id)

        def came(_: simpy.Event) -> None:
            del self._coming[request.request_id]
            self._tell(request, ended, clock.now - ended, way.size, "from")
            if status == FINISHED:
                assert request.first_token is not None
                request.first_token = clock.now if way.at_once else min(request.first_token + way.seconds, clock.now)
                request.finish = clock.now
            request.way_back = beyond
            self._on_end(request, status)

        event = self._coming[request.request_id] = clock.at(ended + way.seconds, NORMAL)
        event.callbacks = [came]

    def _tell(self, request: Request, began: float, seconds: float, size: int, direction: str) -> None:
        detail = f"{direction} {self._route.name}"
        self._world.events.append(
            began, -1, "hop", request_id=request.request_id, seconds=seconds, amount=size, detail=detail
        )
