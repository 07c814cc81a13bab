"""What serves the requests of a scenario, ready for one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ground.assumption import Assumption
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World
from sim.study.pool_parts import PoolParts


@dataclass(frozen=True)
class Serving:
    """`make` makes the service of one run; `kv_blocks` are those of the whole fleet as it begins, None: no pool."""

    make: Callable[[World, OnEnd], Service]
    pools: Sequence[PoolParts]
    kv_blocks: int | None
    assumptions: Sequence[Assumption]
