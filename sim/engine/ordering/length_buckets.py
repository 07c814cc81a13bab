"""Prompts of like length together: those of one bucket are admitted one after the other.

The bucket of whoever waits longest is next, and all who wait in it when its first is admitted go before any other;
those who come to it later wait for its next turn. So a bucket goes before others only while somebody in it came before
them, and nobody waits for ever. Preempted requests go before all.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence

from sim.engine.config import EngineConfig
from sim.engine.ordering.waiting_queue import Ordering, last_admitted
from sim.engine.request import Request


class LengthBuckets:
    """A `WaitingQueue`; every request has its ticket, which rise, and those who were preempted one below all."""

    def __init__(self, bucket_of: Callable[[int], int]) -> None:
        """`bucket_of` a number of prompt tokens."""
        self._bucket_of = bucket_of
        self._buckets: dict[int, OrderedDict[Request, int]] = {}  # none of them empty
        self._turn: OrderedDict[Request, int] = OrderedDict()  # who is admitted before another bucket is
        self._first = self._last = 0

    def push(self, request: Request) -> None:
        self._last += 1
        self._buckets.setdefault(self._bucket_of(request.prompt_tokens), OrderedDict())[request] = self._last

    def put_back(self, request: Request) -> None:
        self._first -= 1
        self._turn[request] = self._first
        self._turn.move_to_end(request, last=False)

    def head(self) -> Request:
        return next(iter(self._turn or self._buckets[self._oldest()]))

    def pop(self) -> Request:
        if not self._turn:
            self._turn = self._buckets.pop(self._oldest())
        return self._turn.popitem(last=False)[0]

    def remove(self, request: Request) -> bool:
        if request in self._turn:
            del self._turn[request]
            return True
        bucket = self._buckets.get(self._bucket_of(request.prompt_tokens), OrderedDict())
        if request not in bucket:
            return False
        del bucket[request]
        if not bucket:
            del self._buckets[self._bucket_of(request.prompt_tokens)]
        return True

    def place(self, request: Request) -> tuple[float, ...]:
        ticket = self._turn.get(request)
        if ticket is not None:
            return (0, ticket)
        bucket = self._buckets[self._bucket_of(request.prompt_tokens)]
        return (1, next(iter(bucket.values())), bucket[request])

    def __len__(self) -> int:
        return len(self._turn) + sum(map(len, self._buckets.values()))

    def _oldest(self) -> int:
        return min(self._buckets, key=lambda bucket: next(iter(self._buckets[bucket].values())))


def length_buckets(config: EngineConfig) -> Ordering:
    bounds: Sequence[int] | None = config.length_buckets
    if bounds is None:
        return Ordering(lambda: LengthBuckets(lambda tokens: (tokens - 1).bit_length()), last_admitted)
    return Ordering(lambda: LengthBuckets(lambda tokens: bisect_left(bounds, tokens)), last_admitted)
