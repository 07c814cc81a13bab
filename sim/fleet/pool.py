"""Equal replicas behind a router; they come and go while the pool serves."""

from __future__ import annotations

from collections import deque

from sim.engine.request import Request
from sim.fleet.load import Load
from sim.fleet.replica import Replica, ReplicaKind
from sim.fleet.routers import ROUTERS
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.world import FINISHED, REJECTED, OnEnd, World
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
        self.load = Load()
        self._world = world
        self._on_end = on_end
        self._site = site
        self._of: dict[int, Replica] = {}  # request_id → where it is
        kv_tokens = kind.engine.kv_blocks * kind.engine.block_size
        random = stream(world.seed, f"router {name}" if name else "router")
        self.router: Router = ROUTERS[router](RouterSetting(random, kv_tokens))
        for _ in range(replicas):
            replica = self.begin()
            self.starting.remove(replica)
            self._enter(replica)
        self._told()

    def submit(self, request: Request) -> None:
        limit = self.kind.engine.max_model_len
        if limit is not None and request.prompt_tokens + request.output_tokens > limit:
            self._on_end(request, REJECTED)
        elif self.members:
            self._send(request)
        else:
            self.held.append(request)

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
            world.clock.now, self.name, site=self._site, gpus=kind.gpus, gpu_hour_price=kind.gpu_hour_price
        )
        replica = Replica(world, number, kind, self._finished)
        self.starting.append(replica)
        return replica

    def join(self, replica: Replica) -> None:
        """It has started: it may be chosen from now on."""
        self.starting.remove(replica)
        self._enter(replica)
        self._told()
        while self.held:
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

    def close(self, end: float) -> None:
        for replica in (*self.members, *self.starting, *self.draining):
            replica.close(end)

    def _send(self, request: Request) -> None:
        replica = self.members[self.router.choose(request, self.load)]
        self.load.sent(replica.place, request)
        self._world.requests.replica[request.request_id] = replica.number
        self._of[request.request_id] = replica
        replica.submit(request)

    def _finished(self, replica: Replica, request: Request) -> None:
        del self._of[request.request_id]
        self._took_leave(replica, request)
        self._on_end(request, FINISHED)

    def _took_leave(self, replica: Replica, request: Request) -> None:
        """It is on the replica no more."""
        self.router.ended(request, replica.number)
        if replica.leaving:
            self._end_if_drained(replica, "scaled down")
        else:
            self.load.ended(replica.place, request)

    def _enter(self, replica: Replica) -> None:
        replica.place = len(self.members)
        self.members.append(replica)
        self.load.come()
        self._world.replicas.ready(replica.number, self._world.clock.now)

    def _leave(self, replica: Replica) -> None:
        del self.members[replica.place]
        self.load.gone(replica.place)
        for place, member in enumerate(self.members):
            member.place = place
        self._told()

    def _end_if_drained(self, replica: Replica, why: str) -> None:
        if not replica.outstanding:
            self.draining.remove(replica)
            replica.close(self._world.clock.now)
            self._world.replicas.ended(replica.number, self._world.clock.now, why)

    def _told(self) -> None:
        self.router.members([replica.number for replica in self.members])
