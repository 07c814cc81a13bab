"""Equal replicas behind a router; they come and go while the pool serves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sim.engine.request import Request
from sim.fleet.admission import ADMISSIONS
from sim.fleet.admission.admission import Admission, Hall
from sim.fleet.admission_settings import AdmissionSettings
from sim.fleet.gauges import Gauges
from sim.fleet.late_news import LateNews
from sim.fleet.load import Load
from sim.fleet.replica import Replica, ReplicaKind
from sim.fleet.routers import ROUTERS
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.routing_settings import RoutingSettings
from sim.fleet.world import FAILED, FINISHED, REJECTED, SHED, OnEnd, World
from traces.streams import stream


class Pool:
    """A `Service`. Requests that come while no replica is ready wait here, in the order in which they came.

    A replica is `starting` from `begin` to `join`, then a member until `drain`, then `draining` until it has served
    what it has.
    """

    def __init__(
        self,
        world: World,
        kind: ReplicaKind,
        on_end: OnEnd,
        *,
        replicas: int,
        router: str = "round_robin",
        routing: RoutingSettings | None = None,
        admission: AdmissionSettings | None = None,
        name: str = "",
        site: str | None = None,
    ) -> None:
        """`replicas` are there from the beginning. `name` tells the pools of a fleet apart."""
        self.name = name
        self.kind = kind
        self.members: list[Replica] = []
        self.starting: list[Replica] = []
        self.draining: list[Replica] = []
        self.held: deque[Request] = deque()  # for want of a replica
        self.bring_up: Callable[[Replica], None] | None = None  # lets it `join`, now or later
        self.gone: list[Callable[[Replica], None]] = []  # told of each that has ended
        self.came: list[Callable[[Replica], None]] = []  # told of each that joins
        self.takes_over: Callable[[Request], bool] | None = None  # whether another replica gets what a crash lost
        routing = routing or RoutingSettings()
        self.load = Load(Gauges(world.clock, self.members, routing.scrape_interval).read)
        self._world = world
        self._on_end = on_end
        self._site = site
        self._of: dict[int, Replica] = {}  # request_id → where it is
        kv_tokens = kind.engine.kv_blocks * kind.engine.block_size
        random = stream(world.seed, f"router {name}" if name else "router")
        clock = world.clock
        self.router: Router = ROUTERS[router](
            RouterSetting(random, kv_tokens, kind.engine.block_size, routing, lambda: clock.now)
        )
        self._news = LateNews(clock, routing.load_delay)
        self._tell_load_sent = self._news.late(self.load.sent)
        self._tell_load_ended = self._news.late(self.load.ended)
        self._tell_router_sent = self._news.late(self.router.sent)
        self._tell_router_ended = self._news.late(self.router.ended)
        self._admission: Admission | None = None
        if admission is not None:
            hall = Hall(
                now=lambda: clock.now,
                replicas=lambda: len(self.members),
                outstanding=lambda: len(self._of) + len(self.held),
                held=lambda: len(self.held),
                gauges=self.load.gauges,
            )
            self._admission = ADMISSIONS[admission.policy](admission, hall)
        world.pools.append(self)
        for _ in range(replicas):
            self._enter(self.begin())
        self._told()

    def submit(self, request: Request) -> None:
        limit = self.kind.engine.max_model_len
        if limit is not None and request.prompt_tokens + request.output_tokens > limit:
            self._on_end(request, REJECTED)
        elif self._admission is not None and (why := self._admission.refuses(request)):
            tokens = request.prompt_tokens + request.output_tokens
            self._world.events.append(
                self._world.clock.now, -1, "shed", request_id=request.request_id, amount=tokens, detail=why
            )
            self._on_end(request, SHED)
        else:
            self._send(request)

    def abort(self, request: Request) -> None:
        replica = self._of.pop(request.request_id, None)
        if replica is None:
            self.held.remove(request)
        else:
            replica.abort(request)
            self._took_leave(replica, request)

    def begin(self) -> Replica:
        """Ask for one more replica; it costs from now on, and takes requests once it may `join`."""
        world, kind = self._world, self.kind
        number = world.replicas.requested(
            world.clock.now,
            self.name,
            site=self._site,
            gpus=kind.gpus,
            gpu_hour_price=kind.gpu_hour_price,
            kv_blocks=kind.kv_blocks,
            power=kind.power,
        )
        replica = Replica(world, number, kind, self._finished)
        self.starting.append(replica)
        return replica

    def grow(self) -> Replica:
        """One more replica, that joins when it has started: at once where nobody was told to `bring_up`."""
        replica = self.begin()
        if self.bring_up is None:
            self.join(replica)
        else:
            self.bring_up(replica)
        return replica

    def join(self, replica: Replica) -> None:
        """It has started: it may be chosen from now on."""
        self._enter(replica)
        self._told()
        for told in self.came:
            told(replica)
        while self.held and self.members:
            self._send(self.held.popleft())

    def drain(self, replica: Replica, why: str) -> None:
        """It gets no more requests, and ends when it has served those that it has; a starting one ends at once."""
        if replica in self.starting:
            self.starting.remove(replica)
        else:
            self._leave(replica)
        replica.leaving = True
        self.draining.append(replica)
        self._end_if_drained(replica, why)

    def crash(self, replica: Replica) -> int:
        """It ends at once, in whatever state it is. What it had fails, in the order in which it came, or begins anew on
        another replica where `takes_over` says so. Returns how many requests that were."""
        if replica in self.starting:
            self.starting.remove(replica)
        elif replica in self.draining:
            self.draining.remove(replica)
        else:
            self._leave(replica)
        self._ended(replica, "crashed")
        lost = replica.lose()
        taken_over: list[Request] = []
        for request in lost:
            del self._of[request.request_id]
            self._tell_load_ended(replica.number, request)
            self._tell_router_ended(request, replica.number)
            if self.takes_over is not None and self.takes_over(request):
                taken_over.append(request)
            else:
                self._on_end(request, FAILED)
        for request in taken_over:
            request.start_over()
            self._send(request)
        return len(lost)

    def close(self, end: float) -> None:
        for replica in (*self.members, *self.starting, *self.draining):
            replica.close(end)

    def _send(self, request: Request) -> None:
        if not self.members:
            self.held.append(request)
            return
        self._news.hear()
        replica = self.members[self.router.choose(request, self.load)]
        number = replica.number
        self._tell_load_sent(number, request)
        self._tell_router_sent(request, number)
        self._world.requests.replica[request.request_id] = number
        self._of[request.request_id] = replica
        replica.submit(request)

    def _finished(self, replica: Replica, request: Request) -> None:
        del self._of[request.request_id]
        self._took_leave(replica, request)
        self._on_end(request, FINISHED)

    def _took_leave(self, replica: Replica, request: Request) -> None:
        """It is on the replica no more."""
        self._tell_load_ended(replica.number, request)
        self._tell_router_ended(request, replica.number)
        if replica.leaving:
            self._end_if_drained(replica, "scaled down")

    def _enter(self, replica: Replica) -> None:
        self.starting.remove(replica)
        self.members.append(replica)
        self.load.come(replica.number)
        replica.begin()
        self._world.replicas.ready(replica.number, self._world.clock.now)

    def _leave(self, replica: Replica) -> None:
        self.members.remove(replica)
        self.load.gone(replica.number)
        self._told()

    def _end_if_drained(self, replica: Replica, why: str) -> None:
        if not replica.outstanding:
            self.draining.remove(replica)
            self._ended(replica, why)

    def _ended(self, replica: Replica, why: str) -> None:
        replica.close(self._world.clock.now)
        self._world.replicas.ended(replica.number, self._world.clock.now, why)
        for told in self.gone:
            told(replica)

    def _told(self) -> None:
        self.router.members([replica.number for replica in self.members])
