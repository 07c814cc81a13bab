"""What a router knows of the replicas that it may choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sim.engine.gauge import Gauge
from sim.engine.request import Request


class Load:
    """Requests sent to each replica and not ended, as far as the router has heard (`sim.fleet.late_news`).

    A replica has a place in every list; places change when a replica comes or goes. What is heard of one that is no
    longer there is of no interest.
    """

    def __init__(self, gauges: Callable[[], Sequence[Gauge]] = tuple) -> None:
        """`gauges` gives what the engines say of themselves, by place (`sim.fleet.gauges`)."""
        self.requests: list[int] = []
        self.tokens: list[int] = []  # prompt and output tokens of those requests
        self.gauges = gauges
        self._replicas: list[int] = []
        self._places: dict[int, int] = {}  # by replica

    def sent(self, replica: int, request: Request) -> None:
        place = self._places.get(replica)
        if place is not None:
            self.requests[place] += 1
            self.tokens[place] += request.prompt_tokens + request.output_tokens

    def ended(self, replica: int, request: Request) -> None:
        place = self._places.get(replica)
        if place is not None:
            self.requests[place] -= 1
            self.tokens[place] -= request.prompt_tokens + request.output_tokens

    def come(self, replica: int) -> None:
        """One more replica, in the last place."""
        self._places[replica] = len(self._replicas)
        self._replicas.append(replica)
        self.requests.append(0)
        self.tokens.append(0)

    def gone(self, replica: int) -> None:
        """Those behind it move up."""
        place = self._places[replica]
        del self.requests[place], self.tokens[place], self._replicas[place]
        self._places = {number: place for place, number in enumerate(self._replicas)}


def least(values: Sequence[float]) -> int:
    """The place of the smallest value; the first of equals."""
    return values.index(min(values))


def any_with(value: float, values: Sequence[float], random: np.random.Generator) -> int:
    """The place of that value; of several any, drawn."""
    places = [place for place, one in enumerate(values) if one == value]
    return places[int(random.integers(len(places)))] if len(places) > 1 else places[0]
