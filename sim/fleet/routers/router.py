"""What a router is told, and what it answers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sim.engine.request import Request
from sim.fleet.load import Load


@dataclass(frozen=True)
class RouterSetting:
    """`random` is the router's own stream; `kv_tokens` is what one replica's KV pool holds."""

    random: np.random.Generator
    kv_tokens: int


class Router(ABC):
    def __init__(self, setting: RouterSetting) -> None:
        self.setting = setting

    @abstractmethod
    def choose(self, request: Request, load: Load) -> int:
        """The place, in the lists of `load`, of the replica for `request`. There is at least one."""

    # A router need not care for what follows.

    def members(self, replicas: Sequence[int]) -> None:  # noqa: B027
        """From now on these replicas may be chosen, by place; a number never comes back for another replica."""

    def ended(self, request: Request, replica: int) -> None:  # noqa: B027
        """A request that was sent to the replica of this number is there no more."""
