"""What an autoscaling policy is asked, and what is set on all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from ground.spec import Spec
from sim.fleet.autoscaling.capacity import Capacity
from sim.fleet.autoscaling.observation import Observation


class PolicySettings(Spec):
    """`min` and `max` bound what is asked for, whatever the policy."""

    min: int = Field(default=1, ge=0, le=1_000_000, description="replicas; 0: the pool may be empty")
    max: int = Field(gt=0, le=1_000_000, description="replicas")
    sync_interval: float = Field(
        default=15.0, gt=0, le=86_400, description="seconds between two decisions (Kubernetes: 15)"
    )
    scrape_interval: float = Field(
        default=15.0,
        ge=0,
        le=86_400,
        description="seconds between two scrapes of metrics; a decision sees the last scrape before it. 0: as of now",
    )
    victims: Literal["youngest", "least_loaded"] = Field(
        default="youngest", description="which ready replicas leave first, after those that are not ready"
    )

    @model_validator(mode="after")
    def _bounds(self) -> PolicySettings:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; expected max to be at least min")
        return self

    def bounded(self, replicas: int) -> int:
        """As many, but at least `min` and at most `max`."""
        return max(self.min, min(self.max, replicas))


class Decision(NamedTuple):
    replicas: int
    reason: str


@dataclass(frozen=True)
class PolicySetting:
    """What a policy may need to know of its pool. `history`: requests/s in each interval of so many seconds before the
    run began, oldest first; empty where nothing is known. `seed` is of its own draws."""

    capacity: Capacity
    history: Callable[[float], np.ndarray]
    seed: int


class Policy(ABC):
    """Decides for one pool. It has no clock: an observation tells the time, which never falls."""

    name: str
    # Seconds after which it is asked beside its turn where requests are held and nobody is there; None: it waits.
    push_interval: float | None = None
    # Whether it asks how many prompt tokens wait in each replica's queue.
    asks_queued_tokens = False

    @abstractmethod
    def recommend(self, observation: Observation) -> Decision:
        """How many replicas there should be from now on. Whoever asks does as it says."""


MakePolicy = Callable[[Any, PolicySetting], Policy]
