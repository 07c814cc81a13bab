"""Where a request is sent: what a placement policy is told, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sim.engine.request import Request


@dataclass(frozen=True)
class Task:
    """What is known of a request's class. `deadline`: seconds from its client and back; None: any time will do."""

    name: str | None
    deadline: float | None
    site: str | None


class Candidate(Protocol):
    """A site as its operator sees it from outside."""

    @property
    def name(self) -> str: ...

    @property
    def rtt(self) -> float:
        """Seconds to it and back."""

    @property
    def fill(self) -> float:
        """Requests that were sent there and have not ended, over its capacity."""

    def latency(self, request: Request, task: Task) -> float:
        """Seconds that the request would take from its client and back, as far as can be told."""

    def cost(self, request: Request, task: Task) -> float:
        """Price of the GPU time that it would take."""


@dataclass(frozen=True)
class PlacementSetting:
    """As in `sim.fleet.places.placement_settings.PlacementSettings`."""

    threshold: float = 0.8
    margin: float = 1.0
    prefer: Literal["nearest", "farthest"] = "nearest"


class Placement(ABC):
    def __init__(self, setting: PlacementSetting) -> None:
        self.setting = setting

    @abstractmethod
    def choose(self, request: Request, task: Task, sites: Sequence[Candidate]) -> int:
        """Which of the sites; there is at least one."""

    def first_in_time(self, request: Request, task: Task, sites: Sequence[Candidate], order: Sequence[int]) -> int:
        """The first in `order` whose predicted latency, with the margin, keeps the deadline; else the fastest."""
        if task.deadline is None:
            return order[0]
        latencies = {}
        for place in order:
            latencies[place] = sites[place].latency(request, task)
            if latencies[place] * self.setting.margin <= task.deadline:
                return place
        return min(latencies, key=latencies.__getitem__)
