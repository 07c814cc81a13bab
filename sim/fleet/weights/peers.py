"""Hosts that send each other weights: who has which, and whose link is the least asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.fleet.weights.cache import WeightCache


class WeightPeers:
    """The weight caches of one run that send to each other, in the order in which their hosts came."""

    def __init__(self) -> None:
        self._hosts: dict[WeightCache, None] = {}

    def join(self, host: WeightCache) -> None:
        self._hosts[host] = None

    def leave(self, host: WeightCache) -> None:
        """It is no more, and sends nothing."""
        self._hosts.pop(host, None)

    def holder(self, name: str, version: int) -> WeightCache | None:
        """Of the hosts that hold that very version, the one that sends least; of equals the one that came first."""
        holders = [host for host in self._hosts if host.holds(name, version)]
        return min(holders, key=lambda host: host.sends, default=None)
