"""How a replica comes to be ready: a node, the image, the weights, the engine, its graphs; or an engine that wakes.

Every part that takes time is an event `cold_start` with its seconds; `detail` says which: node, image, weights and
where from, init, graphs, wake. An engine that falls asleep is an event `asleep`, one that wakes `woken`, each with the
name of its pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

import simpy

from sim.fleet.cold_start_settings import ColdStartSettings
from sim.fleet.duration import seconds_of
from sim.fleet.links.network import Link, Network
from sim.fleet.nodes import Node, Nodes
from sim.fleet.pool import Pool
from sim.fleet.replica import Replica
from sim.fleet.world import World
from traces.streams import stream

Steps = Generator[simpy.Event, None, None]


class ColdStart:
    """Brings up the replicas of a pool. Settings have every number (`ColdStartSettings.resolve`)."""

    def __init__(self, world: World, pool: Pool, settings: ColdStartSettings) -> None:
        self._world = world
        self._pool = pool
        self._settings = settings
        self._whose = f"{pool.name} " if pool.name else ""  # in the names of its links
        self.network = Network(world.clock)
        world.networks.append(self.network)
        self.nodes = Nodes(world.clock, settings.nodes, pool.kind.gpus, self._equip)
        self._unpulled: set[int] = set()  # replicas that wait for a node or an image
        self._ready: dict[int, Link | None] = {}  # replicas that joined → their link, once somebody copied from them
        self._copies: dict[int, int] = {}  # under way from them
        self._asleep: deque[int] = deque()  # numbers of replicas whose engines sleep, the longest asleep first
        self._shared: Link | None = None
        if settings.weights is not None and settings.weights.source == "shared":
            self._shared = self.network.link(f"{self._whose}shared weights", settings.weights.bandwidth)
        for replica in pool.members:
            self.nodes.seat(replica.number)
            self._ready[replica.number] = None
        for number in range(settings.sleep.ready if settings.sleep is not None else 0):
            self.nodes.seat(-1 - number)
            self._fall_asleep(-1 - number)
        pool.bring_up = self.begin
        pool.gone.append(self._gone)

    def pending(self, replica: Replica) -> bool:
        """Whether its container does not run yet."""
        return replica.number in self._unpulled

    def begin(self, replica: Replica) -> None:
        """Start a replica of the pool; it joins when it is ready, unless it leaves before."""
        if self._asleep:
            self._world.clock.process(self._wake(replica, self._asleep.popleft()))
        else:
            self._world.clock.process(self._start(replica))

    def _start(self, replica: Replica) -> Steps:
        clock, settings = self._world.clock, self._settings
        random = stream(self._world.seed, f"cold start {replica.number}")
        assert settings.engine_init is not None and settings.graph_capture is not None
        durations = (settings.node_provision, settings.engine_init, settings.graph_capture)
        provision, init, graphs = (seconds_of(duration, random) for duration in durations)
        self._unpulled.add(replica.number)
        begun, found = clock.now, clock.event()
        self.nodes.place(replica.number, provision, found.succeed)
        yield found
        if not self._goes_on(replica, "node", begun):
            return
        node: Node = found.value
        if settings.image_bytes and node.image is not True:
            begun = clock.now
            yield from self._pull(node)
            if not self._goes_on(replica, "image", begun, settings.image_bytes):
                return
        self._unpulled.discard(replica.number)
        if not (yield from self._load(replica, node)):
            return
        for part, seconds in (("init", init), ("graphs", graphs)):
            if not (yield from self._wait(replica, part, seconds)):
                return
        self._join(replica)

    def _wake(self, replica: Replica, sleeper: int) -> Steps:
        settings = self._settings.sleep
        assert settings is not None
        node = self.nodes.move(sleeper, replica.number)
        events, clock = self._world.events, self._world.clock
        events.append(clock.now, replica.number, "woken", amount=self._pool.kind.gpus, detail=self._pool.name or None)
        random = stream(self._world.seed, f"wake {replica.number}")
        if settings.level == 2 and not (yield from self._load(replica, node)):
            return
        if (yield from self._wait(replica, "wake", seconds_of(settings.wake, random))):
            self._join(replica)

    def _pull(self, node: Node) -> Steps:
        """The image, once for all who start there at the same time."""
        done = self._world.clock.event()
        node.pulling.append(done.succeed)
        if node.image is False:
            node.image = None
            assert node.pull is not None
            self.network.transfer((node.pull,), self._settings.image_bytes, lambda: self._pulled(node))
        yield done

    def _pulled(self, node: Node) -> None:
        node.image = True
        pulling, node.pulling = node.pulling, []
        for told in pulling:
            told()

    def _load(self, replica: Replica, node: Node) -> Generator[simpy.Event, None, bool]:
        weights, clock = self._settings.weights, self._world.clock
        if weights is None:
            return True
        assert weights.bytes is not None
        source: str = weights.source
        link, begun, done = node.disk, clock.now, clock.event()
        peer: int | None = None
        if source == "shared":
            link = self._shared
        elif source == "peer":
            peer = min(self._ready, key=lambda number: (self._copies.get(number, 0), number), default=None)
            source = "disk" if peer is None else f"peer {peer}"
            link = link if peer is None else self._link_of(peer)
        assert link is not None
        if peer is not None:
            self._copies[peer] = self._copies.get(peer, 0) + 1
        self.network.transfer((link,), weights.bytes, done.succeed)
        yield done
        if peer is not None:
            self._copies[peer] -= 1
        return self._goes_on(replica, f"weights from {source}", begun, weights.bytes)

    def _wait(self, replica: Replica, part: str, seconds: float) -> Generator[simpy.Event, None, bool]:
        clock = self._world.clock
        if seconds:
            begun = clock.now
            yield clock.at(begun + seconds, simpy.events.NORMAL)
            return self._goes_on(replica, part, begun)
        return True

    def _goes_on(self, replica: Replica, part: str, begun: float, size: int | None = None) -> bool:
        """A part has ended: write it down, unless the replica is not wanted any more."""
        if replica not in self._pool.starting:
            return False
        seconds = self._world.clock.now - begun
        if seconds:
            self._world.events.append(begun, replica.number, "cold_start", seconds=seconds, amount=size, detail=part)
        return True

    def _join(self, replica: Replica) -> None:
        self._ready[replica.number] = None
        self._pool.join(replica)

    def _gone(self, replica: Replica) -> None:
        """It has ended, or its engine falls asleep instead."""
        sleep = self._settings.sleep
        was_ready = replica.number in self._ready
        self._ready.pop(replica.number, None)
        self._unpulled.discard(replica.number)
        if sleep is not None and was_ready and replica.leaving and len(self._asleep) < sleep.replicas:
            self._fall_asleep(replica.number)
        else:
            self.nodes.leave(replica.number)

    def _fall_asleep(self, number: int) -> None:
        self._asleep.append(number)
        pool, now = self._pool, self._world.clock.now
        self._world.events.append(now, max(-1, number), "asleep", amount=pool.kind.gpus, detail=pool.name or None)

    def _link_of(self, peer: int) -> Link:
        link = self._ready[peer]
        if link is None:
            assert self._settings.weights is not None
            link = self._ready[peer] = self.network.link(f"weights of replica {peer}", self._settings.weights.bandwidth)
        return link

    def _equip(self, node: Node) -> None:
        settings = self._settings
        if settings.image_bandwidth is not None:
            node.pull = self.network.link(f"{self._whose}image pull of node {node.number}", settings.image_bandwidth)
        if settings.weights is not None and settings.weights.source != "shared":
            bandwidth = settings.weights.fallback_bandwidth or settings.weights.bandwidth
            node.disk = self.network.link(f"{self._whose}weights of node {node.number}", bandwidth)
