"""How unequal the contexts of the decoding requests are, counted and not visited: they are `offset + step`."""

from heapq import heappop, heappush

from calibrate.skew import Spread
from sim.engine.request import Request


class ContextSpread:
    def __init__(self) -> None:
        self._offsets = 0  # summed, and their squares
        self._squares = 0
        self._longest: list[tuple[int, int, Request]] = []  # heap of (-offset, admission, request)

    def add(self, request: Request) -> None:
        """It decodes, from its `offset`."""
        offset = request.offset
        self._offsets += offset
        self._squares += offset * offset
        heappush(self._longest, (-offset, request.admission, request))

    def remove(self, request: Request) -> None:
        """It does not, and will have another offset or a `finish_step` of -1."""
        offset = request.offset
        self._offsets -= offset
        self._squares -= offset * offset

    def at(self, step: int, decodes: int) -> Spread | None:
        """Of the `decodes` requests that were added, at a step."""
        if not decodes:
            return None
        longest = self._longest
        while longest[0][2].finish_step == -1 or -longest[0][2].offset != longest[0][0]:
            heappop(longest)  # it no longer decodes, or started anew elsewhere
        squares = self._squares + 2 * step * self._offsets + decodes * step * step
        return Spread(squares, step - longest[0][0])
