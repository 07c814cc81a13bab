"""Replicas that crash and start anew, nodes that are slow for a while, links that lose bandwidth.

A crash loses at once what a replica has; nothing of the step under way is kept. Where replicas are restarted another
one is asked for at the same moment, on the same GPUs, and joins after `restart_seconds`, or as the pool starts its
replicas (`Pool.grow`). A slow node takes so many times as long for every step, its host's part and copies too, as one
with a throttled device or a busy neighbour does. Events: `crashed`, `restarted`, `slowed`, `link_degraded`.

Failures at random are those of a Poisson process for each replica, from when it joins (or the run begins) until it
ends, drawn from a stream of its own: what one does changes no other's. While a node is slow it does not fail that way
again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import simpy
from simpy.events import NORMAL

from ground.errors import UserError
from sim.engine.request import Request
from sim.fleet.duration import seconds_of
from sim.fleet.links.network import Link
from sim.fleet.pool import Pool
from sim.fleet.reliability.failure_settings import FailureSettings, RandomFailures, ScriptedFailure
from sim.fleet.replica import Replica
from sim.fleet.world import World
from traces.streams import stream


class Failures:
    """What fails of a world whose pools are there. They do not keep a run alive: nothing fails where all is quiet, nor
    once all requests have ended, though a repair may be under way."""

    def __init__(self, world: World, settings: FailureSettings) -> None:
        """Raises UserError: there is no pool of a name that is given. A link is looked for when it fails."""
        self._world = world
        self._settings = settings
        self._pick = stream(world.seed, "failures: which replica")
        self._repair = stream(world.seed, "failures: restart")
        self._slow: dict[int, list[float]] = {}  # by replica: the factors of what slows it now
        self._degraded: dict[Link, list[float]] = {}
        self._taken_over: Counter[int] = Counter()  # by request_id
        for scripted in settings.script:
            self._pools(scripted.pool)  # there is one of that name
            self._watch(scripted.at, partial(self._scripted, scripted))
        for number, failures in enumerate(settings.random):
            self._begin(number, failures)
        if settings.failover != "none":
            for pool in world.pools:
                if pool.kind.connect is None:  # else another pool waits for what this one computes
                    pool.takes_over = self._takes_over

    # When.

    def _watch(self, time: float, call: Callable[[], None]) -> None:
        """At `time`, unless nothing else is to happen any more or nobody is left to feel it."""
        world, clock = self._world, self._world.clock

        def look(_: simpy.Event) -> None:
            if world.open and not clock.quiet:
                call()

        clock.watch(max(time, clock.now), NORMAL).callbacks.append(look)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        clock = self._world.clock
        clock.at(clock.now + seconds, NORMAL).callbacks = [lambda _: call()]

    def _scripted(self, failure: ScriptedFailure) -> None:
        if failure.link is not None:
            self._degrade(self._link(failure.link), failure.factor, failure.duration)
            return
        members = [one for pool in self._pools(failure.pool) for one in pool.members]
        if failure.replica == "any" and members:
            place = int(self._pick.integers(len(members)))
        else:
            place = 0 if failure.replica == "any" else failure.replica
        if place < len(members):  # it may have gone, or not come
            self._fail(members[place], failure.factor, failure.duration)

    def _begin(self, number: int, failures: RandomFailures) -> None:
        if failures.link is not None:
            self._next(failures, stream(self._world.seed, f"failures {number}: {failures.link}"), failures.link)
            return

        def came(replica: Replica) -> None:
            self._next(failures, stream(self._world.seed, f"failures {number}: replica {replica.number}"), replica)

        for pool in self._pools(failures.pool):
            pool.came.append(came)
            for replica in pool.members:
                came(replica)

    def _next(self, failures: RandomFailures, random: Any, what: Replica | str) -> None:
        """Draw when a replica, or the link of a name, fails next, and for how long."""
        wait = float(random.exponential(failures.mtbf))
        duration = None if failures.duration is None else seconds_of(failures.duration, random)

        def fail() -> None:
            if isinstance(what, str):
                self._degrade(self._link(what), failures.factor, duration)
            elif not self._serves(what):
                return
            else:
                self._fail(what, failures.factor, duration)
            if duration is not None:
                self._later(duration, lambda: self._next(failures, random, what))

        self._watch(self._world.clock.now + wait, fail)

    # What.

    def _fail(self, replica: Replica, factor: float | None, duration: float | None) -> None:
        if factor is None:
            self._crash(replica)
            return
        self._slow.setdefault(replica.number, []).append(factor)
        self._slowed(replica)
        if duration is not None:
            self._later(duration, lambda: self._fast_again(replica, factor))

    def _fast_again(self, replica: Replica, factor: float) -> None:
        self._slow[replica.number].remove(factor)
        if self._serves(replica):
            self._slowed(replica)

    def _slowed(self, replica: Replica) -> None:
        factor = max(self._slow[replica.number], default=1.0)
        replica.engine.slow(factor)
        detail = f"steps take {factor:g} times as long"
        self._world.events.append(self._world.clock.now, replica.number, "slowed", detail=detail)

    def _crash(self, replica: Replica) -> None:
        world, settings = self._world, self._settings
        pool = next(pool for pool in world.pools if replica in pool.members or replica in pool.draining)
        wanted = settings.restarts and not replica.leaving
        lost = len(replica.outstanding)
        world.events.append(world.clock.now, replica.number, "crashed", amount=lost)
        pool.crash(replica)
        if wanted:
            self._restart(pool, replica)

    def _restart(self, pool: Pool, crashed: Replica) -> None:
        world, settings = self._world, self._settings
        if settings.restart_seconds is None:
            started = pool.grow()
        else:
            started = pool.begin()
            self._later(seconds_of(settings.restart_seconds, self._repair), lambda: _join(pool, started))
        detail = f"for replica {crashed.number}"
        world.events.append(world.clock.now, started.number, "restarted", amount=1, detail=detail)

    def _degrade(self, link: Link, factor: float | None, duration: float | None) -> None:
        assert factor is not None
        self._degraded.setdefault(link, []).append(factor)
        self._set(link)
        if duration is not None:
            self._later(duration, lambda: self._whole_again(link, factor))

    def _whole_again(self, link: Link, factor: float) -> None:
        self._degraded[link].remove(factor)
        self._set(link)

    def _set(self, link: Link) -> None:
        """It keeps the least share of all that befalls it."""
        factor = min(self._degraded[link], default=1.0)
        link.degrade(factor)
        now = self._world.clock.now
        self._world.events.append(now, -1, "link_degraded", amount=round(100 * factor), detail=link.name)

    # Whom.

    def _pools(self, name: str | None) -> list[Pool]:
        pools = [pool for pool in self._world.pools if name is None or pool.name == name]
        if name is not None and not pools:
            known = ", ".join(repr(pool.name) for pool in self._world.pools)
            raise UserError(f"fleet.failures: there is no pool {name!r}; expected one of {known}")
        return pools

    def _link(self, name: str) -> Link:
        links = [link for network in self._world.networks for link in network.links]
        for link in links:
            if link.name == name and link.bandwidth == inf:
                raise UserError(
                    f"fleet.failures: link {name!r} is unlimited; expected one that has a bandwidth to lose"
                )
            if link.name == name:
                return link
        known = ", ".join(sorted({link.name for link in links})) or "none"
        raise UserError(f"fleet.failures: there is no link {name!r}; the links are: {known}")

    def _serves(self, replica: Replica) -> bool:
        return any(replica in pool.members or replica in pool.draining for pool in self._world.pools)

    def _takes_over(self, request: Request) -> bool:
        settings = self._settings
        if settings.failover == "before_first_token" and request.first_token is not None:
            return False
        assert settings.failover_limit is not None
        if self._taken_over[request.request_id] >= settings.failover_limit:
            return False
        self._taken_over[request.request_id] += 1
        world = self._world
        detail = "its replica crashed, and the router sent it to another one"
        attempt = self._taken_over[request.request_id] + 1
        world.events.append(
            world.clock.now,
            world.requests.replica[request.request_id],
            "retried",
            request_id=request.request_id,
            amount=attempt,
            detail=detail,
        )
        return True


def _join(pool: Pool, replica: Replica) -> None:
    if replica in pool.starting:  # or it is not wanted any more
        pool.join(replica)
