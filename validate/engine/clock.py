"""The wall clock of a measured run, in seconds since its start."""

from __future__ import annotations

import time
from typing import Protocol

_SPIN = 0.001  # a sleep may overshoot by a scheduler tick; the last millisecond is spun


class Clock(Protocol):
    """What the engine needs of time: so a test can drive it with a time of its own."""

    def start(self) -> None:
        """Now is 0."""

    def now(self) -> float:
        """Seconds since the start."""

    def wait_until(self, when: float) -> None:
        """Return as soon after `when` as can be."""


class WallClock:
    """Real time; `wait_until` sleeps coarsely and spins the rest, so it is late by microseconds."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._origin = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._origin

    def wait_until(self, when: float) -> None:
        coarse = when - self.now() - _SPIN
        if coarse > 0:
            time.sleep(coarse)
        while self.now() < when:
            pass
