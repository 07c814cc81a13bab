"""Decoding requests of which each holds, and reads, no more than so many tokens.

Counted as all decoding requests are. A request whose context has grown to the most is *full*: it is in no sum that
grows with the steps, and needs no block at an edge. Who becomes full changes the batch, so a leap ends there.
"""

from __future__ import annotations

from heapq import heappop, heappush

from sim.engine.decode_batch import DecodeBatch
from sim.engine.kv_pool import KvPool
from sim.engine.ordering.service import Service
from sim.engine.plan import Plan
from sim.engine.request import Request


class CappedBatch(DecodeBatch):
    """A `DecodeBatch` whose `kv_tokens` counts at most `most` tokens of each; those are whole blocks."""

    def __init__(self, pool: KvPool, block_size: int, most: int, *, service: Service | None = None) -> None:
        super().__init__(pool, block_size, spread=False, service=service)
        self._most = most
        self._full: set[Request] = set()
        self._filling: list[tuple[int, int, Request]] = []  # heap of (the step at which it is full, admission, request)

    def start(self, request: Request) -> None:
        super().start(request)
        self._fills(request)

    def stop(self, request: Request, granted: int = 0) -> None:
        if request in self._full:
            self._full.remove(request)
            self.full -= 1
            self.at_edge[-request.offset % self._size] += 1
            self.kv_tokens += self.context(request) - self._most
        super().stop(request, granted)

    def horizon(self, free: int) -> int:
        steps = super().horizon(free)
        while self._filling and not self._is_filling(self._filling[0]):
            heappop(self._filling)  # it stopped or was delayed
        return min(steps, self._filling[0][0] - self.step) if self._filling else steps

    def advance(self, plan: Plan, steps: int) -> None:
        self.kv_tokens -= plan.full * steps
        super().advance(plan, steps)
        while self._filling and self._filling[0][0] <= self.step:
            entry = heappop(self._filling)
            if self._is_filling(entry):
                self._fills(entry[2])

    def _delay(self, request: Request) -> None:
        if request in self._full:
            self.at_edge[-request.offset % self._size] += 1
            super()._delay(request)
            self.at_edge[-request.offset % self._size] -= 1
        else:
            super()._delay(request)
            self._fills(request)

    def _fills(self, request: Request) -> None:
        """It is not full: now it is, or it is known when it will be."""
        over = self.context(request) - self._most
        if over < 0:
            heappush(self._filling, (self.step - over, request.admission, request))
            return
        self._full.add(request)
        self.full += 1
        self.at_edge[-request.offset % self._size] -= 1
        self.kv_tokens -= over

    def _is_filling(self, entry: tuple[int, int, Request]) -> bool:
        """Whether an entry of the heap is what became of its request."""
        full_step, _, request = entry
        decodes = request.finish_step != -1 and request not in self._full
        return decodes and self._most - request.offset == full_step
