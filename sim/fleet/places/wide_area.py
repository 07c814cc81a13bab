"""The way between clients and a site: half the round trip each way, and bytes over the site's access link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from simpy.events import URGENT

from sim.engine.clock import Clock
from sim.engine.request import Request
from sim.fleet.links.network import Network
from sim.fleet.places.hop import Way


@dataclass(frozen=True)
class Payload:
    """Bytes of requests and answers. `extra`: request_id → bytes beside the prompt's text, such as an image."""

    prompt_token: float
    output_token: float
    streamed: bool
    extra: Callable[[int], int]

    def request(self, request: Request) -> int:
        return round(request.prompt_tokens * self.prompt_token) + self.extra(request.request_id)


class WideArea:
    """A `hop.Route`. Requests that are sent at once share the way up; tokens of a stream are small and share nothing on
    the way down, as little as answers that come whole."""

    def __init__(
        self,
        clock: Clock,
        network: Network,
        name: str,
        payload: Payload,
        *,
        rtt: float,
        up: float | None,
        down: float | None,
    ) -> None:
        """`up`, `down`: bytes/s; None: no limit."""
        self.name = name
        self.rtt = rtt
        self.payload = payload
        self._clock = clock
        self._network = network
        self._up = network.link(f"{name} up", inf if up is None else up, rtt / 2)
        self._down = inf if down is None else down

    def go(self, request: Request, there: Callable[[], None]) -> tuple[int, Callable[[], None]]:
        size = self.payload.request(request)
        turned_back = False

        def came() -> None:
            event = self._clock.at(self._clock.now, URGENT)
            event.callbacks = [lambda _: None if turned_back else there()]

        transfer = self._network.transfer((self._up,), size, came)

        def turn_back() -> None:
            nonlocal turned_back
            turned_back = True
            self._network.cancel(transfer)

        return size, turn_back

    def back(self, request: Request) -> Way:
        payload = self.payload
        size = round(request.output_tokens * payload.output_token) if request.finish is not None else 0
        if not payload.streamed:
            return Way(self.rtt / 2 + size / self._down, size, at_once=True)
        return Way(self.first_back(request), size)

    def first_back(self, request: Request) -> float:
        return self.rtt / 2 + self.payload.output_token / self._down if self.payload.streamed else inf

    def gone(self, request: Request) -> None:
        pass

    def seconds_to(self, request: Request) -> float:
        """That it takes to get there when nobody else is on the way."""
        return self.rtt / 2 + self.payload.request(request) / self._up.capacity

    def seconds_back(self, output_tokens: float) -> float:
        """Of an answer's last byte after it was computed."""
        tokens = 1.0 if self.payload.streamed else output_tokens
        return self.rtt / 2 + tokens * self.payload.output_token / self._down
