"""What an operator can tell of a site from outside: how long a request would take there, and what it would cost.

He knows the network, what he sent there and has not had back, how long his engines' steps take (their profile), how
fast tokens came of late, and how far off he was. He does not know how many tokens a request will get: he reckons with
the mean of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, exp
from typing import Protocol

from sim.engine.clock import Clock
from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.fleet.placement.placement import Task
from sim.fleet.places.wide_area import WideArea

_RECENT = 0.1  # weight of the newest observation in a mean of late
_FORGOTTEN = 30.0  # seconds after which of an error that nobody has seen again 1/e is left


class AskedSteps(Protocol):
    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float:
        """Seconds of a step, as `sim.engine.step_times.StepTimes` has them."""


class ExpectedOutput:
    """The mean output tokens of each class, of the requests that have ended; a guess before the first has."""

    def __init__(self, guess: Callable[[str | None], int]) -> None:
        self._guess = guess
        self._sums: dict[str | None, tuple[int, int]] = {}

    def __call__(self, name: str | None) -> float:
        total, count = self._sums.get(name, (0, 0))
        return total / count if count else self._guess(name)

    def ended(self, name: str | None, output_tokens: int) -> None:
        total, count = self._sums.get(name, (0, 0))
        self._sums[name] = total + output_tokens, count + 1


class SiteEstimate:
    """A `sim.fleet.placement.placement.Candidate`.

    A request waits for the prompts before it, which are worked off one after the other on each replica, and while all
    seats are taken for its turn to get one. Then its own prompt is computed, and its tokens come as fast as those of
    others did of late. All that is corrected by how much longer requests took of late than was predicted for them.
    """

    def __init__(
        self,
        clock: Clock,
        route: WideArea,
        config: EngineConfig,
        step_times: AskedSteps,
        expected: ExpectedOutput,
        *,
        replicas: Callable[[], int],
        gpus: int,
        gpu_hour_price: float | None,
        capacity: int | None,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        """`replicas` tells how many take requests; while none does it reckons with one, that will. `gone` tells whether
        none ever will. `gpus` of a replica, each at a price."""
        self.name = route.name
        self.rtt = route.rtt
        self.outstanding = 0
        self._clock = clock
        self._route = route
        self._times = step_times
        self._budget = config.max_num_batched_tokens
        self._expected = expected
        self._ready = replicas
        self._gone = gone
        self._seats_of_one = config.max_num_seqs
        self._capacity = capacity
        self._price = (gpu_hour_price or 0.0) * gpus / 3600
        self._ahead = 0.0  # seconds of prompts not yet computed, all replicas, when it was last looked at
        self._looked_at = 0.0
        self._token_seconds: float | None = None  # measured
        self._error = 0.0  # by how much longer requests took than predicted, over that, when one last ended
        self._erred_at = 0.0
        self._predicted: dict[int, tuple[float, float]] = {}  # request_id → when it was sent, without any correction

    @property
    def fill(self) -> float:
        return self.outstanding / (self._capacity or self._seats)

    @property
    def gone(self) -> bool:
        """Nobody takes requests there, and nobody ever will."""
        return self._gone()

    @property
    def _replicas(self) -> int:
        return max(1, self._ready())

    @property
    def _seats(self) -> int:
        return self._replicas * self._seats_of_one

    def latency(self, request: Request, task: Task) -> float:
        return (1.0 + self._late()) * self._uncorrected(request, task)

    def _late(self) -> float:
        return self._error * exp((self._erred_at - self._clock.now) / _FORGOTTEN)

    def _uncorrected(self, request: Request, task: Task) -> float:
        output = self._expected(task.name)
        prompt, token = self._prompt_seconds(request), self._seconds_a_token(request, output)
        service = prompt + (output - 1) * token
        wait = self._waiting_prompts() / self._replicas
        if self.outstanding >= self._seats:
            wait += (self.outstanding - self._seats + 1) / self._seats * service
        return self._route.seconds_to(request) + wait + service + self._route.seconds_back(output)

    def cost(self, request: Request, task: Task) -> float:
        """Its prompt has the GPUs to itself, its tokens share them with those of the others that are there."""
        output = self._expected(task.name)
        token = self._seconds_a_token(request, output) / self._running()
        return self._price * (self._prompt_seconds(request) + (output - 1) * token)

    def sent(self, request: Request, task: Task) -> None:
        self._predicted[request.request_id] = self._clock.now, self._uncorrected(request, task)
        self._ahead = self._waiting_prompts() + self._prompt_seconds(request)
        self.outstanding += 1

    def ended(self, request: Request) -> None:
        """It has answered, or somebody has given it up."""
        self.outstanding -= 1
        sent, predicted = self._predicted.pop(request.request_id)
        longer = max(0.0, (self._clock.now - sent) / predicted - 1.0)
        self._error, self._erred_at = (1 - _RECENT) * self._late() + _RECENT * longer, self._clock.now
        first, last, more = request.first_token, request.finish, request.output_tokens - 1
        # Of an answer that came whole nobody saw how fast its tokens were.
        if first is not None and last is not None and more and first < last:
            seconds = (last - first) / more
            before = self._token_seconds
            self._token_seconds = seconds if before is None else before + _RECENT * (seconds - before)

    def _running(self) -> int:
        """Requests of one replica, this one among them."""
        return min(ceil((self.outstanding + 1) / self._replicas), self._seats_of_one)

    def _waiting_prompts(self) -> float:
        now = self._clock.now
        self._ahead = max(0.0, self._ahead - (now - self._looked_at) * self._replicas)
        self._looked_at = now
        return self._ahead

    def _prompt_seconds(self, request: Request) -> float:
        chunks = ceil(request.prompt_tokens / self._budget)
        tokens = ceil(request.prompt_tokens / chunks)
        return sum(self._times.step([(tokens, chunk * tokens)], 0, 0) for chunk in range(chunks))

    def _seconds_a_token(self, request: Request, output: float) -> float:
        if self._token_seconds is not None:
            return self._token_seconds
        running = self._running()
        return self._times.step([], running, running * round(request.prompt_tokens + output / 2))
