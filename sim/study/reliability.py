"""From a scenario's clients and failures to what stands before its service and what befalls it."""

from __future__ import annotations

from collections.abc import Callable

from sim.fleet.reliability.clients import Clients
from sim.fleet.reliability.failures import Failures
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World
from sim.study.scenario import FleetSettings


def with_failures(fleet: FleetSettings, make: Callable[[World, OnEnd], Service]) -> Callable[[World, OnEnd], Service]:
    """Makes the service that `make` makes, with clients before it and failures in its world as far as they are set."""

    def made(world: World, on_end: OnEnd) -> Service:
        if fleet.clients is None:
            service = make(world, on_end)
        else:
            clients = Clients(world, fleet.clients, on_end)
            clients.serve_by(make(world, clients.ended))
            service = clients
        if fleet.failures is not None:
            Failures(world, fleet.failures)
        return service

    return made
