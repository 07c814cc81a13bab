"""What speaks for each replica of a request's candidates, from 0 to 1; a router adds such scores up.

The rules are those of llm-d's inference scheduler and the Gateway API Inference Extension (`pkg/epp/framework/plugins/
scheduling/scorer`). A new scorer is one function here and one line in `SCORERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from sim.engine.gauge import Gauge
from sim.engine.request import Request


@dataclass(frozen=True)
class Candidates:
    """What the scorers see; every sequence is by place."""

    request: Request
    outstanding: Sequence[int]  # requests sent and not ended
    read_gauges: Callable[[], Sequence[Gauge]]  # asked once, if at all
    read_matches: Callable[[], Sequence[int]]
    last_of_session: int | None  # place of the replica that had the session's last request
    load_threshold: int  # waiting requests

    @cached_property
    def gauges(self) -> Sequence[Gauge]:
        return self.read_gauges()

    @cached_property
    def matches(self) -> Sequence[int]:
        """Leading prefix ids of the prompt that each replica was sent before."""
        return self.read_matches()


def prefix(to: Candidates) -> list[float]:
    """The share of the prompt that was sent there before."""
    count = len(to.request.prefix_ids)
    return [match / count for match in to.matches] if count else [0.0] * len(to.outstanding)


def queue(to: Candidates) -> list[float]:
    """1 for the shortest queue and 0 for the longest; 1 for all if they are equally long."""
    waiting = [gauge.waiting for gauge in to.gauges]
    low, high = min(waiting), max(waiting)
    return [(high - count) / (high - low) if high > low else 1.0 for count in waiting]


def kv(to: Candidates) -> list[float]:
    """The share of the KV cache that is free."""
    return [1.0 - gauge.kv_use for gauge in to.gauges]


def load_aware(to: Candidates) -> list[float]:
    """0.5 with nobody waiting, less the more wait, and nothing from the threshold on."""
    most = to.load_threshold
    return [0.5 * (1.0 - min(gauge.waiting, most) / most) for gauge in to.gauges]


def active_requests(to: Candidates) -> list[float]:
    """1 with nothing outstanding, 0 with the most."""
    most = max(to.outstanding)
    return [(most - count) / most if count else 1.0 for count in to.outstanding]


def session(to: Candidates) -> list[float]:
    """1 where the session's last request was sent."""
    return [float(place == to.last_of_session) for place in range(len(to.outstanding))]


Scorer = Callable[[Candidates], list[float]]

SCORERS: dict[str, Scorer] = {
    "prefix": prefix,
    "queue": queue,
    "kv": kv,
    "load_aware": load_aware,
    "active_requests": active_requests,
    "session": session,
}
