"""What a policy of the door is told, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sim.engine.gauge import Gauge
from sim.engine.request import Request


@dataclass(frozen=True)
class Hall:
    """What can be seen from the door; nothing of it is late but the gauges, which are as of the last scrape."""

    now: Callable[[], float]
    replicas: Callable[[], int]  # that are ready
    outstanding: Callable[[], int]  # requests that were let in and have not ended
    held: Callable[[], int]  # those of them that wait for a replica to be ready
    gauges: Callable[[], Sequence[Gauge]]  # of the ready replicas


class Admission(Protocol):
    def refuses(self, request: Request) -> str:
        """Why it is turned away, in a few words; empty: it may come in. Asked once a request."""
