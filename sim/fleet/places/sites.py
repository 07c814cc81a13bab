"""Sites far apart, each a pool behind a network, and a policy that says to which one a request is sent.

A policy does not see a site that is gone; where all are, a request fails at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sim.engine.request import Request
from sim.fleet.placement.placement import Placement, Task
from sim.fleet.places.hop import Hop
from sim.fleet.places.site_estimate import ExpectedOutput, SiteEstimate
from sim.fleet.world import FAILED, FINISHED, OnEnd


class Sites:
    """A `Service`. A request stays where it was sent."""

    def __init__(
        self,
        placement: Placement,
        estimates: Sequence[SiteEstimate],
        hops: Sequence[Callable[[OnEnd], Hop]],
        tasks: Callable[[int], Task],
        expected: ExpectedOutput,
        on_end: OnEnd,
    ) -> None:
        """`estimates` and `hops` are of the same sites; `tasks`: request_id → its class."""
        self._placement = placement
        self._estimates = estimates
        self._tasks = tasks
        self._expected = expected
        self._on_end = on_end
        self._of: dict[int, int] = {}  # request_id → which site
        self.hops = [hop(partial(self._ended, place)) for place, hop in enumerate(hops)]

    def submit(self, request: Request) -> None:
        task = self._tasks(request.request_id)
        there = [place for place, estimate in enumerate(self._estimates) if not estimate.gone]
        if not there:
            self._on_end(request, FAILED)
            return
        place = there[self._placement.choose(request, task, [self._estimates[one] for one in there])]
        self._of[request.request_id] = place
        self._estimates[place].sent(request, task)
        self.hops[place].submit(request)

    def abort(self, request: Request) -> None:
        place = self._of.pop(request.request_id)
        self._estimates[place].ended(request)
        self.hops[place].abort(request)

    def close(self, end: float) -> None:
        for hop in self.hops:
            hop.close(end)

    def _ended(self, place: int, request: Request, status: str) -> None:
        del self._of[request.request_id]
        self._estimates[place].ended(request)
        if status == FINISHED:
            self._expected.ended(self._tasks(request.request_id).name, request.output_tokens)
        self._on_end(request, status)


class Tasks:
    """The class of each request, by request_id."""

    def __init__(
        self, classes: Sequence[str | None], deadlines: Sequence[float | None], sites: Mapping[str, str]
    ) -> None:
        """`deadlines` of each request; `sites`: class → where policy fixed sends it."""
        self._classes = classes
        self._deadlines = deadlines
        self._sites = sites

    def __call__(self, request_id: int) -> Task:
        name = self._classes[request_id]
        return Task(name, self._deadlines[request_id], None if name is None else self._sites.get(name))
