"""One replica of a pool: an engine with what stands before it, and the requests that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.engine.clock import Clock
from sim.engine.config import EngineConfig
from sim.engine.offload.host_link import NO_TIERS, HostLinkSettings
from sim.engine.offload.process import OffloadingEngine
from sim.engine.pipelined import PipelinedEngine
from sim.engine.process import Engine
from sim.engine.remote_prompts import KvConnector
from sim.engine.request import Request
from sim.engine.speculative.process import SpeculativeEngine
from sim.engine.step_costs import StepCosts
from sim.engine.step_times import StepTimes
from sim.fleet.weights.cache import WeightCache
from sim.fleet.world import World
from sim.results.energy import ReplicaPower
from sim.results.recorder import EventRecorder


def no_costs(replica: int, events: EventRecorder, begun: float = 0.0) -> StepCosts | None:
    return None


@dataclass(frozen=True)
class ReplicaKind:
    """What all replicas of a pool are.

    `costs` makes what a replica's steps take beyond `step_times`, and is told since when it is there; `weights` makes
    the cache of models that stands before its engine, where there is one. `gpu_hour_price` is of one of its `gpus`;
    None: not given. `power` is what it draws; None: not known. `connect` makes what carries the KV blocks of a replica,
    where one computes prompts for another. `kv_blocks` are all that it has; None: it has no pool of them. `host_link`
    is what a replica's KV blocks are copied over where they are offloaded.
    """

    engine: EngineConfig
    step_times: StepTimes
    costs: Callable[[int, EventRecorder, float], StepCosts | None] = no_costs
    weights: Callable[[Clock, int, EventRecorder, Callable[[Request], None]], WeightCache] | None = None
    gpus: int = 1
    gpu_hour_price: float | None = None
    power: ReplicaPower | None = None
    connect: Callable[[Replica], KvConnector] | None = None
    kv_blocks: int | None = None
    host_link: HostLinkSettings = NO_TIERS


class Replica:
    """`number` is its own in the whole fleet. `on_finish` is told of every request that it has served."""

    def __init__(
        self, world: World, number: int, kind: ReplicaKind, on_finish: Callable[[Replica, Request], None]
    ) -> None:
        self.number = number
        self.outstanding: dict[int, Request] = {}  # by request_id, in the order in which they came
        self.leaving = False  # it gets no more requests
        self._world = world
        self._on_finish = on_finish
        engine = PipelinedEngine if kind.engine.pipeline_parallel > 1 else Engine
        if kind.engine.speculative is not None:
            engine = SpeculativeEngine
        elif kind.engine.kv_offload is not None or kind.engine.preemption == "auto":
            engine = OffloadingEngine
        self.engine = engine(
            world.clock,
            number,
            kind.engine,
            kind.step_times,
            world.steps,
            world.events,
            self._finished,
            costs=kind.costs(number, world.events, world.clock.now),
            leap=world.leap,
        )
        if isinstance(self.engine, OffloadingEngine):
            self.engine.connect(kind.host_link)
        self._cache: WeightCache | None = None
        if kind.weights is not None:
            self._cache = kind.weights(world.clock, number, world.events, self.engine.submit)
        self._host: Engine | WeightCache = self._cache or self.engine
        self._connector: KvConnector | None = None
        if kind.connect is not None:
            self._connector = kind.connect(self)
            self.engine.scheduler.connect(self._connector)

    def begin(self) -> None:
        """It has started, and takes requests from now on."""
        if self._cache is not None:
            self._cache.begin()

    def submit(self, request: Request) -> None:
        self.outstanding[request.request_id] = request
        self._host.submit(request)

    def abort(self, request: Request) -> None:
        """Its client has gone."""
        request = self.outstanding.pop(request.request_id)
        if self._cache is None or self._cache.abort(request):
            self.engine.abort(request)

    def lose(self) -> list[Request]:
        """It crashed and is closed: returns what it had, in the order in which it came. Nothing of it ever ends."""
        lost = list(self.outstanding.values())
        self.outstanding.clear()
        return lost

    def close(self, end: float) -> None:
        """It ended then, or the run did."""
        engine, world = self.engine, self._world
        engine.stop()
        engine.close(end)
        if self._cache is not None:
            self._cache.stop()
        if engine.retention is not None:
            world.accounts[self.number] = engine.retention.accounts
        if engine.reservation_use is not None:
            world.uses.append(engine.reservation_use)

    def read(self, request: Request) -> None:
        """Another replica has the blocks of a request that had ended here, and kept them for it."""
        self.engine.give_back(request)
        self._left(request)

    def _finished(self, request: Request) -> None:
        if request.kept and self._connector is not None:
            self._connector.prefilled(request)
        else:
            self._left(request)

    def _left(self, request: Request) -> None:
        del self.outstanding[request.request_id]
        if self._cache is not None:
            self._cache.finished(request)
        self._on_finish(self, request)
