"""Asks a policy, time and again, how many replicas a pool should have, and sees to it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from math import inf

import simpy
from simpy.events import URGENT

from sim.engine.request import Request
from sim.fleet.autoscaling.observation import (
    CONCURRENCY,
    HELD,
    KV_BLOCKS,
    KV_USE,
    REQUEST_RATE,
    RUNNING,
    SEATS,
    WAITING,
    Observation,
    Pod,
    Traffic,
)
from sim.fleet.autoscaling.policy import Policy, PolicySettings
from sim.fleet.pool import Pool
from sim.fleet.replica import Replica
from sim.fleet.world import FINISHED, OnEnd, World

# Requests that are held for ever, since the policy never asks for a replica, do not keep a run alive for ever.
PATIENCE = 86_400.0


class Autoscaler:
    """A `Service` before a pool, which it is given by `drive`; the pool tells `ended` of its requests.

    Metrics are scraped every so often, and a decision sees the last scrape before it. Of equal instants it decides
    first, then scrapes, both before what arrives and what engines do then. The first decision is at time 0.
    """

    def __init__(self, world: World, settings: PolicySettings, policy: Policy, on_end: OnEnd) -> None:
        self._world = world
        self._settings = settings
        self._policy = policy
        self._on_end = on_end
        self._pool: Pool
        self._pending: Callable[[Replica], bool]
        self._open = 0  # requests that came and have not ended
        self._coming = Traffic()  # since the last scrape
        self._scraped = Traffic()  # since the last decision, up to the last scrape
        self._scraped_at = 0.0
        self._pods: dict[int, Pod] = {}  # by replica, as scraped
        self._totals: dict[str, float] = dict.fromkeys((WAITING, RUNNING, KV_USE, HELD, CONCURRENCY, REQUEST_RATE), 0.0)
        self._pushing = False
        self._busy_at = 0.0  # when something last happened

    def drive(self, pool: Pool, pending: Callable[[Replica], bool] = lambda _: False) -> None:
        """From now on. `pending`: whether a starting replica still waits for a node or an image."""
        self._pool, self._pending = pool, pending
        self._world.clock.process(self._run())

    def submit(self, request: Request) -> None:
        self._open += 1
        self._coming.arrived += 1
        self._pool.submit(request)
        wait = self._policy.push_interval
        if wait is not None and self._pool.held and not self._pool.starting and not self._pushing:
            self._pushing = True
            clock = self._world.clock
            clock.at(clock.now + wait, URGENT).callbacks = [self._pushed]

    def abort(self, request: Request) -> None:
        self._open -= 1
        self._pool.abort(request)

    def close(self, end: float) -> None:
        self._pool.close(end)

    def ended(self, request: Request, status: str) -> None:
        """The pool's `OnEnd`."""
        self._open -= 1
        if status == FINISHED:
            assert request.first_token is not None and request.finish is not None
            coming = self._coming
            coming.finished += 1
            coming.prompt_tokens += request.prompt_tokens
            coming.output_tokens += request.output_tokens
            coming.ttft += request.first_token - request.arrival
            coming.decode += request.finish - request.first_token
            coming.decoded += request.output_tokens - 1
            coming.e2e += request.finish - request.arrival
        self._on_end(request, status)

    def _run(self) -> Generator[simpy.Event, None, None]:
        clock, settings = self._world.clock, self._settings
        syncs, scrapes = 0, 1
        while True:
            sync = syncs * settings.sync_interval
            scrape = scrapes * settings.scrape_interval if settings.scrape_interval else inf
            yield clock.watch(min(sync, scrape), URGENT)
            if not clock.quiet:
                self._busy_at = clock.now
            elif not self._open or clock.now > self._busy_at + PATIENCE:
                return
            if sync <= scrape:
                syncs += 1
                if scrape == inf:
                    self._scrape()
                self._decide()
            if scrape <= sync:
                scrapes += 1
                self._scrape()

    def _pushed(self, _: simpy.Event) -> None:
        """Requests are held and nobody is there."""
        self._pushing = False
        self._scrape()
        self._decide()

    def _decide(self) -> None:
        pool, clock = self._pool, self._world.clock
        before = len(pool.members) + len(pool.starting)
        observation = Observation(clock.now, self._observed_pods(), self._totals, self._scraped)
        self._scraped = Traffic()
        decision = self._policy.recommend(observation)
        if decision.replicas != before:
            self._busy_at = clock.now
            detail = f"{pool.name}: " * bool(pool.name) + f"{self._policy.name}: {decision.reason}"
            self._world.events.append(clock.now, -1, "scaled", amount=decision.replicas, detail=detail)
        for _ in range(decision.replicas - before):
            pool.grow()
        for replica in self._victims(before - decision.replicas):
            pool.drain(replica, "scaled down")

    def _victims(self, count: int) -> Sequence[Replica]:
        """Who leaves: pending ones first, then starting ones, then ready ones, the youngest of each; as Kubernetes
        ranks them (`pkg/controller/controller_utils.go`), or of the ready ones those with the fewest requests."""
        if count <= 0:
            return ()
        starting = sorted(self._pool.starting, key=lambda one: (not self._pending(one), -one.number))
        members = self._pool.members[::-1]  # who joined last comes first
        if self._settings.victims == "least_loaded":
            members = sorted(members, key=lambda one: len(one.outstanding))
        return [*starting, *members][:count]

    def _observed_pods(self) -> list[Pod]:
        pool = self._pool
        pods = [self._pods.get(one.number, Pod(one.number, pending=False, ready=True)) for one in pool.members]
        pods += [Pod(one.number, pending=self._pending(one), ready=False) for one in pool.starting]
        return pods

    def _scrape(self) -> None:
        pool, now = self._pool, self._world.clock.now
        coming, self._coming = self._coming, Traffic()
        coming.seconds, self._scraped_at = now - self._scraped_at, now
        self._scraped.add(coming)
        self._pods = {one.number: self._scraped_pod(one) for one in pool.members}
        scraped = [*self._pods.values(), *map(self._scraped_pod, pool.draining)]
        metrics = [pod.metrics for pod in scraped if pod.metrics is not None]
        self._totals = {name: sum(one[name] for one in metrics) for name in (WAITING, RUNNING, KV_USE)}
        self._totals[HELD] = len(pool.held)
        self._totals[CONCURRENCY] = self._open
        self._totals[REQUEST_RATE] = coming.arrived / coming.seconds if coming.seconds else 0.0

    def _scraped_pod(self, replica: Replica) -> Pod:
        gauge, config = replica.engine.gauge, self._pool.kind.engine
        blocks, seats = config.kv_blocks * config.data_parallel, config.max_num_seqs * config.data_parallel
        queued = 0
        if self._policy.asks_queued_tokens and gauge.waiting:
            queued = sum(one.prompt_tokens for one in replica.outstanding.values() if one.first_scheduled is None)
        return Pod(
            replica.number,
            pending=False,
            ready=True,
            metrics={WAITING: gauge.waiting, RUNNING: gauge.running, KV_USE: gauge.kv_use},
            usage={KV_BLOCKS: gauge.kv_use * blocks, SEATS: gauge.running},
            requests={KV_BLOCKS: blocks, SEATS: seats},
            queued_tokens=queued,
            kv_tokens=round(gauge.kv_use * blocks) * config.block_size,
        )
