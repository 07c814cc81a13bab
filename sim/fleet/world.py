"""What all parts of one simulated fleet share: the clock, the tables being written, and the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.engine.clock import Clock
from sim.engine.request import Request
from sim.engine.reservation_use import ReservationUse
from sim.engine.session_accounts import SessionAccounts
from sim.fleet.links.network import Network
from sim.results.recorder import EventRecorder, RequestRecorder, StepRecorder
from sim.results.replica_recorder import ReplicaRecorder

if TYPE_CHECKING:
    from sim.fleet.pool import Pool

# How a request may end (column `status` of the requests table).
FINISHED = "finished"
REJECTED = "rejected"  # longer than an engine takes
SHED = "shed"  # turned away at the door
TIMED_OUT = "timed_out"  # its client gave up
FAILED = "failed"  # lost with a replica and not tried again, or no site is left

# Told of every request that ends, with one of the words above.
OnEnd = Callable[[Request, str], None]


@dataclass
class World:
    requests: RequestRecorder
    seed: int = 0
    leap: bool = True
    clock: Clock = field(default_factory=Clock)
    steps: StepRecorder = field(default_factory=StepRecorder)
    events: EventRecorder = field(default_factory=EventRecorder)
    replicas: ReplicaRecorder = field(default_factory=ReplicaRecorder)
    accounts: dict[int, SessionAccounts] = field(default_factory=dict)  # by replica, of those that have ended
    uses: list[ReservationUse] = field(default_factory=list)  # of the same
    pools: list[Pool] = field(default_factory=list)  # that serve in it
    networks: list[Network] = field(default_factory=list)  # whose links have names
    open: int = field(init=False)  # requests that have yet to come or to end

    def __post_init__(self) -> None:
        self.open = len(self.requests.arrival)
