"""What is told reaches its hearer some seconds later, in the order in which it was told.

A router that reads its counts from a store, or shares them with other routers, always decides by what was true a while
ago (Mitzenmacher, "How Useful Is Old Information?", 2000, doi:10.1109/71.824633).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from sim.engine.clock import Clock


class LateNews:
    """To tell costs the same however much is under way; nothing is an event of the clock."""

    def __init__(self, clock: Clock, delay: float) -> None:
        """`delay` in seconds; with 0 everything is heard as it is told."""
        self._clock = clock
        self._delay = delay
        self._under_way: deque[tuple[float, Callable[..., None], tuple[Any, ...]]] = deque()

    def late(self, hearer: Callable[..., None]) -> Callable[..., None]:
        """Whom to tell what the hearer is to hear: itself, where nothing is late."""
        return partial(self._tell, hearer) if self._delay else hearer

    def hear(self) -> None:
        """Everything that has arrived by now. Whoever asks a hearer must call this first."""
        under_way = self._under_way
        while under_way and under_way[0][0] <= self._clock.now:
            _, hearer, news = under_way.popleft()
            hearer(*news)

    def _tell(self, hearer: Callable[..., None], *news: Any) -> None:
        self._under_way.append((self._clock.now + self._delay, hearer, news))
