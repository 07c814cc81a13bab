"""Clients that give up and clients that try again: what stands between arrivals and the service.

An attempt times out at its first token or at its last; what comes at the very instant of a limit is too late. The
client then hangs up, and the service notices `abort_delay` later. A new attempt is a new request to the service, with
the same request_id, and not sent before the service has noticed the end of the one before it. Its wait is drawn
uniformly from nothing to an exponentially growing limit, "full jitter" (Brooker, "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015), from a stream of its own. A deadline ends everything, a wait too. What is rejected is not
tried again: it would be rejected again.

Events: `timed_out` for each attempt that was given up, `retried` for each that was sent again, at the instant at which
it was; `seconds` of either are those since the attempt before it was sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import simpy
from simpy.events import NORMAL

from sim.engine.clock import Clock
from sim.engine.request import Request
from sim.fleet.reliability.client_settings import ClientSettings, RetryBudgetSettings
from sim.fleet.service import Service
from sim.fleet.world import TIMED_OUT, OnEnd, World
from traces.streams import stream


@dataclass(eq=False, slots=True)
class _Call:
    """A request as its client sees it: the attempt that is with the service, or was the last."""

    attempt: Request
    number: int = 1  # of that attempt
    waits: bool = False  # for the next one
    open: bool = True


class Clients:
    """A `Service` before a service, which it is given by `serve_by`, and which tells `ended` of its requests."""

    def __init__(self, world: World, settings: ClientSettings, on_end: OnEnd) -> None:
        self._world = world
        self._settings = settings
        self._on_end = on_end
        self._service: Service
        self._calls: dict[int, _Call] = {}  # by request_id, the open ones
        self._hung_up: set[Request] = set()  # attempts of which the service has not noticed
        self._retrying = 0  # calls that wait for a further attempt or have one with the service
        clock = world.clock
        self._ttft = _Limit(clock, settings.ttft_timeout, self._no_first_token)
        self._whole = _Limit(clock, settings.timeout, self._no_last_token)
        self._deadline = _Limit(clock, settings.deadline, self._too_late)

    def serve_by(self, service: Service) -> None:
        self._service = service

    def submit(self, request: Request) -> None:
        call = self._calls[request.request_id] = _Call(request)
        self._deadline.start(call)
        self._send(call)

    def abort(self, request: Request) -> None:
        call = self._calls[request.request_id]
        self._close(call)
        if not call.waits:
            self._service.abort(call.attempt)

    def close(self, end: float) -> None:
        self._service.close(end)

    def ended(self, request: Request, status: str) -> None:
        """The service's `OnEnd`."""
        call = self._calls.get(request.request_id)
        if request in self._hung_up:
            self._hung_up.remove(request)
        elif call is not None and call.attempt is request and not self._tries_again(call, status):
            self._close(call)
            self._on_end(request, status)

    def _send(self, call: _Call) -> None:
        self._ttft.start(call)
        self._whole.start(call)
        self._service.submit(call.attempt)

    def _close(self, call: _Call) -> None:
        del self._calls[call.attempt.request_id]
        call.open = False
        if call.number > 1:
            self._retrying -= 1

    # Giving up.

    def _no_first_token(self, call: _Call, number: int) -> None:
        if self._is_at(call, number) and not self._sees_first_token(call.attempt):
            self._give_up(call, "no first token in time")

    def _no_last_token(self, call: _Call, number: int) -> None:
        if self._is_at(call, number):
            self._give_up(call, "no last token in time")

    def _too_late(self, call: _Call, number: int) -> None:
        if not call.open:
            return
        if call.waits:
            self._record("timed_out", call, "deadline, while it waited to be sent again")
        else:
            self._hang_up(call, "deadline")
        self._close(call)
        self._on_end(call.attempt, TIMED_OUT)

    def _sees_first_token(self, attempt: Request) -> bool:
        """Whether the client has had it before now; it may still be on its way from the engine."""
        first = attempt.first_token
        return first is not None and first + attempt.way_back < self._world.clock.now

    def _is_at(self, call: _Call, number: int) -> bool:
        """Whether the attempt of that number is with the service."""
        return call.open and call.number == number and not call.waits

    def _give_up(self, call: _Call, why: str) -> None:
        self._hang_up(call, why)
        if not self._tries_again(call, TIMED_OUT):
            self._close(call)
            self._on_end(call.attempt, TIMED_OUT)

    def _hang_up(self, call: _Call, why: str) -> None:
        attempt, delay = call.attempt, self._settings.abort_delay
        self._record("timed_out", call, why)
        if not delay:
            self._service.abort(attempt)
            return
        self._hung_up.add(attempt)
        clock = self._world.clock
        clock.at(clock.now + delay, NORMAL).callbacks = [lambda _: self._noticed(attempt)]

    def _noticed(self, attempt: Request) -> None:
        if attempt in self._hung_up:  # it has not ended meanwhile
            self._hung_up.remove(attempt)
            self._service.abort(attempt)

    # Trying again.

    def _tries_again(self, call: _Call, status: str) -> bool:
        """Whether there is another attempt, which is then on its way."""
        retries = self._settings.retries
        if retries is None or status not in retries.on or call.number >= retries.attempts:
            return False
        first = call.number == 1
        # The attempt that ends was a retry itself, or it was none.
        others = self._retrying - (not first)
        if retries.budget is not None and others >= _allowed(retries.budget, len(self._calls)):
            return False
        self._retrying += first
        clock = self._world.clock
        random = stream(self._world.seed, f"retry {call.number} of {call.attempt.request_id}")
        limit = min(retries.backoff_max, retries.backoff_base * 2.0 ** (call.number - 1))
        wait = float(random.uniform(0.0, limit)) if limit else 0.0
        if status == TIMED_OUT:
            wait = max(wait, self._settings.abort_delay)
        call.number += 1
        call.waits = True
        clock.at(clock.now + wait, NORMAL).callbacks = [lambda _: self._again(call, status)]
        return True

    def _again(self, call: _Call, status: str) -> None:
        if not call.open:
            return
        self._record("retried", call, status)
        call.attempt = call.attempt.again(self._world.clock.now)
        call.waits = False
        self._send(call)

    def _record(self, kind: str, call: _Call, detail: str) -> None:
        world, attempt = self._world, call.attempt
        now, replica = world.clock.now, world.requests.replica[attempt.request_id]
        world.events.append(
            now,
            replica,
            kind,
            request_id=attempt.request_id,
            seconds=now - attempt.arrival,
            amount=call.number,
            detail=detail,
        )


def _allowed(budget: RetryBudgetSettings, calls: int) -> int:
    """Retries at once, with so many open requests."""
    return max(int(budget.percent / 100.0 * calls), budget.min_concurrency)


class _Limit:
    """The same time for everybody: who started first reaches it first, so one event at a time is enough. It does not
    keep a run alive by itself."""

    def __init__(self, clock: Clock, seconds: float | None, reached: Callable[[_Call, int], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._reached = reached
        self._started: deque[tuple[float, _Call, int]] = deque()  # when each is reached, by whom at which attempt

    def start(self, call: _Call) -> None:
        if self._seconds is None:
            return
        self._started.append((self._clock.now + self._seconds, call, call.number))
        if len(self._started) == 1:
            self._watch()

    def _watch(self) -> None:
        self._clock.watch(self._started[0][0], NORMAL).callbacks.append(self._look)

    def _look(self, _: simpy.Event) -> None:
        now, started = self._clock.now, self._started
        due = []
        while started and started[0][0] <= now:
            due.append(started.popleft())
        while started and not started[0][1].open:  # what it would end is there no more
            started.popleft()
        if started:
            self._watch()
        for _time, call, number in due:
            self._reached(call, number)
