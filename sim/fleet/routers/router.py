"""What a router is told, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.engine.request import Request
from sim.fleet.load import Load
from sim.fleet.routing_settings import RoutingSettings


@dataclass(frozen=True)
class RouterSetting:
    """`random` is the router's own stream; `kv_tokens` is what one replica's KV pool holds; `now` tells the time."""

    random: np.random.Generator
    kv_tokens: int
    block_size: int = 16
    options: RoutingSettings = field(default_factory=RoutingSettings)
    now: Callable[[], float] = float  # at the beginning


class Router(ABC):
    def __init__(self, setting: RouterSetting) -> None:
        self.setting = setting

    @abstractmethod
    def choose(self, request: Request, load: Load) -> int:
        """The place, in the lists of `load`, of the replica for `request`. There is at least one."""

    # A router need not care for what follows.

    def members(self, replicas: Sequence[int]) -> None:  # noqa: B027
        """From now on these replicas may be chosen, by place; a number never comes back for another replica."""

    # News of these two may be late (`RoutingSettings.load_delay`), and of replicas that are there no more.

    def sent(self, request: Request, replica: int) -> None:  # noqa: B027
        """The request went to the replica of this number."""

    def ended(self, request: Request, replica: int) -> None:  # noqa: B027
        """It is there no more."""
