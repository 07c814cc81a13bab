"""What serves requests: a pool of replicas, a prefill and a decode pool behind one another, or sites far apart."""

from typing import Protocol

from sim.engine.request import Request


class Service(Protocol):
    def submit(self, request: Request) -> None:
        """Take a request. It ends, now or later, by a call of the service's `OnEnd`, and exactly once."""

    def abort(self, request: Request) -> None:
        """The client has gone: the request, submitted and not ended, gives back what it holds, and never ends."""

    def close(self, end: float) -> None:
        """The run ended then; nothing comes any more."""
