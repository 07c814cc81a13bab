"""The weights in one host's memory: a request runs when those of its model are there, and waits until they are.

The host's engine serves all its models: their requests share its steps and its KV pool. What a model is, is a name in
the trace; an adapter is a model of few bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple

from simpy.events import URGENT

from sim.engine.clock import Clock
from sim.engine.request import Request
from sim.fleet.links.shared_link import SharedLink
from sim.fleet.weights.eviction import EVICTIONS
from sim.fleet.weights.models import Models, Weights
from sim.fleet.weights.peers import WeightPeers
from sim.fleet.weights.settings import WeightCacheSettings
from sim.results.recorder import EventRecorder


class _Wait(NamedTuple):
    request: Request
    since: float
    why: str


@dataclass(eq=False, slots=True)
class _Load:
    weights: Weights
    why: str
    waiting: list[_Wait]
    begun: float = 0.0


class WeightCache:
    """Stands before one engine: takes its requests and hands each on when its weights are there.

    Weights that a request waits for or runs on are in use and stay. Where none can give way a load waits, and the loads
    behind it too, so the oldest goes first. A new version is loaded beside the old one while that is in use.

    Events: `model_load` with a request_id for every request that did not find its weights, or had to wait behind
    another load; its `detail` is one of these words and the model.

    - miss: it began the load. stale: the same, and the host had an older version.
    - joined: it waited for a load that another request had begun.
    - stampede: it began a load while another of the same weights was under way.
    - behind: the weights were there, and another model was being loaded (without `load_while_serving`).

    `weights_loaded` is a load; `weights_evicted` the end of weights, whose `detail` says what for: the name of the
    eviction policy, ttl, stale, or copy (the second of a stampede).

    With `peer_bandwidth` a load comes from another host that holds that very version, if as it begins that host's link
    promises it no less than its own does. Weights that are being sent are in use. Where the sender ends, the load
    begins anew. `weights_sent` is such a copy: its replica is the sender, its `detail` names receiver and model.
    """

    def __init__(
        self,
        settings: WeightCacheSettings,
        models: Models,
        asked: Sequence[str],
        clock: Clock,
        replica: int,
        events: EventRecorder,
        serve: Callable[[Request], None],
        *,
        peers: WeightPeers | None = None,
    ) -> None:
        """`asked`: the model of each request, by request_id. `serve` takes a request whose weights are there.
        Every model must fit, and those of `preload` together (`WeightCacheSettings.check_fit`)."""
        self._settings = settings
        self._models = models
        self._asked = asked
        self._clock = clock
        self._replica = replica
        self._events = events
        self._serve = serve
        self._rank = EVICTIONS[settings.eviction]
        self._bandwidth = _number(settings.load_bandwidth)
        self._link = SharedLink(clock, self._bandwidth)
        self._copies = 0  # under way on it
        self._peers = peers
        self._peer_bandwidth = _number(settings.peer_bandwidth or "unlimited")
        self._peer_link = SharedLink(clock, self._peer_bandwidth)
        self._sent: dict[_Load, WeightCache] = {}  # loads of other hosts, whose weights are under way to them
        self._known: dict[tuple[str, int], Weights] = {}  # resident, being loaded or wanted
        self._newest: dict[str, int] = {}  # version that was asked for last
        self._idle: dict[Weights, None] = {}  # longest idle first
        self._used_by: dict[int, Weights] = {}  # request_id → what it uses
        self._bytes = 0  # held by resident weights and loads under way
        self._count = 0  # of them
        self._loading = 0  # loads under way
        self._single: dict[Weights, _Load] = {}  # the load that others join
        self._queue: deque[_Load] = deque()  # loads that wait for memory
        self._behind: list[_Wait] = []  # requests that wait for the end of all loads
        self._waiting: dict[Request, _Load | None] = {}  # all that wait → the load, None: behind
        self._stopped = False

    def begin(self) -> None:
        """Its host is ready: it holds what is preloaded, and sends it to others."""
        for name in self._settings.preload:
            self._preload(name)
        if self._peers is not None:
            self._peers.join(self)

    def submit(self, request: Request) -> None:
        now = self._clock.now
        name = self._asked[request.request_id]
        self._drop_expired(now)
        weights, why = self._find(name, now)
        weights.users += 1
        weights.uses += 1
        self._idle.pop(weights, None)
        self._used_by[request.request_id] = weights
        if weights.resident:
            self._begin(_Wait(request, now, ""))
        elif not why and self._settings.single_flight:
            load = self._single[weights]
            load.waiting.append(_Wait(request, now, "joined"))
            self._waiting[request] = load
        else:
            why = why or "stampede"
            load = _Load(weights, why, [_Wait(request, now, why)])
            self._waiting[request] = load
            if self._settings.single_flight:
                self._single[weights] = load
            self._queue.append(load)
            self._begin_loads()

    def finished(self, request: Request) -> None:
        """It has run; its weights may go if nobody else uses them."""
        weights = self._used_by.pop(request.request_id)
        weights.users -= 1
        if not weights.users:
            self._unused(weights)

    def abort(self, request: Request) -> bool:
        """Its client has gone: it gives back its weights at once, be the engine's last step with them under way.

        A load that has begun goes on; one that nobody waits for any more does not begin. Returns whether the request
        had been handed on.
        """
        weights = self._used_by.pop(request.request_id)
        weights.users -= 1
        served = request not in self._waiting
        if not served:
            self._wait_no_more(request, self._waiting.pop(request))
        if not weights.users:
            if weights.resident:
                self._unused(weights)
            elif not weights.loads:
                del self._known[weights.name, weights.version]
        return served

    def stop(self) -> None:
        """Its host is no more: nothing is loaded, sent or handed on any more."""
        self._stopped = True
        if self._peers is not None:
            self._peers.leave(self)
        lost, self._sent = self._sent, {}
        for load, host in lost.items():
            host._fetch_next(load)

    def _unused(self, weights: Weights) -> None:
        """Nobody uses resident weights any more."""
        if weights.version != self._newest[weights.name]:
            self._drop(weights, "stale")
        else:
            weights.idle_since = self._clock.now
            self._idle[weights] = None
        self._begin_loads_next()

    def _find(self, name: str, now: float) -> tuple[Weights, str]:
        """The weights that a request for `name` needs; where they are unknown, why."""
        version = self._models.version(name, now)
        weights = self._known.get((name, version))
        if weights is not None:
            return weights, ""
        old = self._known.get((name, self._newest.get(name, version)))
        if old is not None and old.resident and not old.users:
            self._drop(old, "stale")
        return self._learn(name, version), "miss" if old is None else "stale"

    def _learn(self, name: str, version: int) -> Weights:
        weights = Weights(name, version, self._models.size(name))
        self._known[name, version] = weights
        self._newest[name] = version
        return weights

    def _wait_no_more(self, request: Request, load: _Load | None) -> None:
        if load is None:
            self._behind = [wait for wait in self._behind if wait.request is not request]
            return
        load.waiting = [wait for wait in load.waiting if wait.request is not request]
        if not load.waiting and load in self._queue:
            self._queue.remove(load)
            self._single.pop(load.weights, None)
            self._begin_loads_next()

    def _begin_loads(self) -> None:
        if self._stopped:
            return
        now = self._clock.now
        self._drop_expired(now)
        while self._queue and self._make_room(self._queue[0].weights.size):
            load = self._queue.popleft()
            load.begun = now
            self._loading += 1
            load.weights.loads += 1
            self._bytes += load.weights.size
            self._count += 1
            self._fetch(load)

    def _fetch(self, load: _Load) -> None:
        """Copy weights from the host that promises most, of the other hosts and its own disk or store."""
        weights = load.weights
        host = None if self._peers is None else self._peers.holder(weights.name, weights.version)
        if host is not None and host._peer_bandwidth / (host.sends + 1) >= self._bandwidth / (self._copies + 1):
            host._send(load, self)
        else:
            self._copies += 1
            self._link.copy(weights.size, partial(self._read, load))

    def _fetch_next(self, load: _Load) -> None:
        """The same, when the event under way is over."""
        if not self._stopped:
            self._clock.at(self._clock.now, URGENT).callbacks = [lambda _: self._fetch(load)]

    def _read(self, load: _Load) -> None:
        self._copies -= 1
        self._copied(load)

    # For other hosts.

    @property
    def sends(self) -> int:
        """How many copies are under way to other hosts."""
        return len(self._sent)

    def holds(self, name: str, version: int) -> bool:
        weights = self._known.get((name, version))
        return weights is not None and weights.resident

    def _send(self, load: _Load, host: WeightCache) -> None:
        weights = self._known[load.weights.name, load.weights.version]
        weights.users += 1
        self._idle.pop(weights, None)
        self._sent[load] = host
        self._peer_link.copy(weights.size, partial(self._has_sent, load, weights, self._clock.now))

    def _has_sent(self, load: _Load, weights: Weights, begun: float) -> None:
        if self._stopped:
            return
        host = self._sent.pop(load)
        weights.users -= 1
        self._record(begun, "weights_sent", weights, str(host._replica), self._clock.now - begun)
        if not weights.users:
            self._unused(weights)
        host._copied(load)

    def _copied(self, load: _Load) -> None:
        latency = self._settings.load_latency
        if latency:
            self._clock.at(self._clock.now + latency, URGENT).callbacks = [lambda _: self._loaded(load)]
        else:
            self._loaded(load)

    def _loaded(self, load: _Load) -> None:
        if self._stopped:
            return
        weights, now = load.weights, self._clock.now
        self._loading -= 1
        weights.loads -= 1
        self._record(load.begun, "weights_loaded", weights, load.why, now - load.begun)
        waits = load.waiting
        another = weights.resident
        if another:
            self._give_up(weights, "copy", now)
            self._begin_loads_next()
        else:
            weights.resident = True
            self._single.pop(weights, None)
            waits = [*waits, *self._spare_loads(weights)]
        if not self._loading:
            waits, self._behind = sorted([*waits, *self._behind], key=lambda wait: wait.since), []
        for wait in waits:
            self._begin(wait)
        if not another and not weights.users:  # all who waited have gone
            self._unused(weights)

    def _spare_loads(self, weights: Weights) -> list[_Wait]:
        """Take back the loads of these weights that have not begun; returns who waits for them."""
        spared = [load for load in self._queue if load.weights is weights]
        if spared:
            self._queue = deque(load for load in self._queue if load.weights is not weights)
        return [wait._replace(why="joined") for load in spared for wait in load.waiting]

    def _begin_loads_next(self) -> None:
        """When the event under way is over: the engine may be at a step's end and must not be handed requests there."""
        if self._queue:
            self._clock.at(self._clock.now, URGENT).callbacks = [lambda _: self._begin_loads()]

    def _begin(self, wait: _Wait) -> None:
        """Hand on a request whose weights are there, unless loads keep the host from it."""
        if self._loading and not self._settings.load_while_serving:
            self._behind.append(wait if wait.why else wait._replace(why="behind"))
            self._waiting[wait.request] = None
            return
        request, since, why = wait
        self._waiting.pop(request, None)
        if why:
            weights, seconds = self._used_by[request.request_id], self._clock.now - since
            self._record(since, "model_load", weights, why, seconds, request.request_id)
        self._serve(request)

    def _make_room(self, size: int) -> bool:
        """Evict what must go for `size` more bytes; False, with nothing evicted, if too little may."""
        settings, idle = self._settings, self._idle
        bytes_over = count_over = 0
        if settings.capacity_bytes is not None:
            bytes_over = self._bytes + size - settings.capacity_bytes
        if settings.capacity_models is not None:
            count_over = self._count + 1 - settings.capacity_models
        if len(idle) < count_over or (bytes_over > 0 and sum(weights.size for weights in idle) < bytes_over):
            return False
        while bytes_over > 0 or count_over > 0:
            victim = min(idle, key=self._rank)
            bytes_over -= victim.size
            count_over -= 1
            self._drop(victim, settings.eviction)
        return True

    def _drop_expired(self, now: float) -> None:
        ttl = self._settings.ttl
        while ttl is not None and self._idle:
            longest = next(iter(self._idle))
            if longest.idle_since + ttl > now:
                break
            self._drop(longest, "ttl", longest.idle_since + ttl)

    def _drop(self, weights: Weights, why: str, time: float | None = None) -> None:
        """Weights that nobody uses."""
        self._idle.pop(weights, None)
        del self._known[weights.name, weights.version]
        self._give_up(weights, why, self._clock.now if time is None else time)

    def _give_up(self, weights: Weights, why: str, time: float) -> None:
        self._bytes -= weights.size
        self._count -= 1
        self._record(time, "weights_evicted", weights, why)

    def _preload(self, name: str) -> None:
        now = self._clock.now
        weights = self._learn(name, self._models.version(name, now))
        weights.resident, weights.idle_since = True, now
        self._idle[weights] = None
        self._bytes += weights.size
        self._count += 1
        self._record(now, "weights_loaded", weights, "preload", 0.0)

    def _record(
        self,
        time: float,
        kind: str,
        weights: Weights,
        why: str,
        seconds: float | None = None,
        request_id: int | None = None,
    ) -> None:
        self._events.append(
            time,
            self._replica,
            kind,
            request_id=request_id,
            seconds=seconds,
            amount=weights.size,
            detail=f"{why} {weights.name}",
        )


def _number(bandwidth: float | str) -> float:
    """In bytes/s; infinite where it is unlimited."""
    return inf if isinstance(bandwidth, str) else bandwidth
