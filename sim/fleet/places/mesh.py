"""A service mesh between clients and a service, by its measured parts: proxies, handshakes, connections that are kept.

All proxies of the way add a time to each request, half of it on the way there and half on the way back. A request that
finds no idle connection waits for a new one: TCP, then TLS with certificates of both sides. The connection used last is
taken first, as Envoy does; it is closed when it was idle for too long or has carried enough requests. The connections
are those of all clients together to the service as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import exp, inf

from simpy.events import NORMAL

from sim.engine.clock import Clock
from sim.engine.request import Request
from sim.fleet.places.hop import Way
from sim.fleet.places.mesh_settings import MeshSettings
from traces.streams import stream

_DRAWN = 4096  # latencies at a time


class Connections:
    """Those that are open. Times never fall from call to call."""

    def __init__(self, settings: MeshSettings) -> None:
        self.opened = 0
        self._settings = settings
        self._most = settings.max_requests_per_connection or inf
        self._idle: deque[tuple[float, int]] = deque()  # (since, requests it has carried), the latest last
        # Of the one that carries many at once, if there is one: since when it carries any, requests that it has carried
        # or carries, those of them that it carries, and when it last had one.
        self._ready, self._carried, self._carries, self._last = 0.0, inf, 0, 0.0

    def take(self, now: float) -> tuple[float, int]:
        """For one request: how long it waits for a connection, and how many that has carried before it."""
        return self._share(now) if self._settings.multiplexed else self._reuse(now)

    def give(self, now: float, carried: int) -> None:
        """The request has its answer; its connection had carried so many before it."""
        if self._settings.multiplexed:
            self._carries, self._last = self._carries - 1, now
        elif carried + 1 < self._most:
            self._idle.append((now, carried + 1))

    def lose(self, now: float, carried: int) -> None:
        """The request is given up: a connection of its own is closed, a shared one goes on."""
        if self._settings.multiplexed:
            self.give(now, carried)

    def _reuse(self, now: float) -> tuple[float, int]:
        while self._idle and self._idle[0][0] + self._settings.idle_timeout <= now:
            self._idle.popleft()
        if self._idle:
            return 0.0, self._idle.pop()[1]
        self.opened += 1
        return self._settings.handshake, 0

    def _share(self, now: float) -> tuple[float, int]:
        idle = not self._carries and self._last + self._settings.idle_timeout <= now
        if self._carried >= self._most or idle:
            self.opened += 1
            self._ready, self._carried = now + self._settings.handshake, 0
        self._carried += 1
        self._carries += 1
        return max(0.0, self._ready - now), int(self._carried) - 1


class Mesh:
    """A `sim.fleet.places.hop.Route`."""

    name = "mesh"

    def __init__(self, clock: Clock, settings: MeshSettings, seed: int) -> None:
        self.connections = Connections(settings)
        self._clock = clock
        self._settings = settings
        self._random = stream(seed, "mesh")
        self._latencies: list[float] = []
        self._taken: dict[int, tuple[float, int]] = {}  # request_id → half its latency, what its connection has carried

    def go(self, request: Request, there: Callable[[], None]) -> tuple[int, Callable[[], None]]:
        now, half = self._clock.now, self._latency() / 2
        wait, carried = self.connections.take(now)
        self._taken[request.request_id] = half, carried
        event = self._clock.at(now + half + wait, NORMAL)
        event.callbacks = [lambda _: there()]

        def turn_back() -> None:
            self._clock.abandon(event)
            self.gone(request)

        return 0, turn_back

    def back(self, request: Request) -> Way:
        half, carried = self._taken.pop(request.request_id)
        self.connections.give(self._clock.now, carried)
        return Way(half, 0)

    def first_back(self, request: Request) -> float:
        return self._taken[request.request_id][0]

    def gone(self, request: Request) -> None:
        _, carried = self._taken.pop(request.request_id)
        self.connections.lose(self._clock.now, carried)

    def _latency(self) -> float:
        if not self._latencies:
            latency = self._settings.latency
            draws = self._random.standard_normal(_DRAWN)
            self._latencies = [latency.median * exp(latency.sigma * draw) for draw in draws[::-1]]
        return self._latencies.pop()
