"""The requests of a session go to one replica, and a replica that comes or goes moves few sessions.

Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018, arXiv:1608.01350), as in Envoy's ring
hash with `hash_balance_factor` and HAProxy's `hash-balance-factor`: each replica has many points on a ring, a session
goes to the next point after its own, and where that replica has its share of the load already to the next replica on
the ring. A request without a session goes to the replica with the fewest outstanding.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from math import ceil, inf

from sim.engine.request import Request
from sim.fleet.load import Load, least
from sim.fleet.routers.router import Router, RouterSetting
from sim.fleet.routing_settings import SessionAffinitySettings


class SessionAffinity(Router):
    def __init__(self, setting: RouterSetting) -> None:
        super().__init__(setting)
        self._options = setting.options.session_affinity or SessionAffinitySettings()
        self._points: dict[int, list[int]] = {}  # by replica
        self._ring: list[tuple[int, int]] = []  # (point, place), rising

    def members(self, replicas: Sequence[int]) -> None:
        known = self._points
        self._points = {replica: known.get(replica) or self._points_of(replica) for replica in replicas}
        self._ring = sorted((point, place) for place, one in enumerate(self._points.values()) for point in one)

    def choose(self, request: Request, load: Load) -> int:
        outstanding, factor = load.requests, self._options.balance_factor
        if request.session is None:
            return least(outstanding)
        most = inf if isinstance(factor, str) else ceil(factor * (sum(outstanding) + 1) / len(outstanding))
        start = bisect_right(self._ring, (_hash(request.session), -1))
        for index in range(start, start + len(self._ring)):
            place = self._ring[index % len(self._ring)][1]
            if outstanding[place] < most:
                return place
        raise AssertionError("not all replicas can have more than the mean")

    def _points_of(self, replica: int) -> list[int]:
        return [_hash(f"{replica}/{point}") for point in range(self._options.points)]


def _hash(text: str) -> int:
    """The same in every process, unlike Python's own."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
