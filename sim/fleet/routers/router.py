"""What a router is told, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.engine.request import Request


@dataclass(frozen=True)
class RouterSetting:
    """`random` is the router's own stream; `kv_tokens` is what one replica's KV pool holds."""

    replicas: int
    random: np.random.Generator
    kv_tokens: int


class Router(Protocol):
    def choose(self, request: Request, outstanding: Sequence[int]) -> int:
        """The replica for `request`; `outstanding[i]` requests are waiting or running on replica i."""
