"""KV blocks in host memory, where preempted requests wait instead of being computed anew.

Copies belong to the step that needs them: blocks go out before the step overwrites them, and come back before the step
that goes on with them. A step that preempts admits nobody, so no step copies both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sim.engine.request import Request


class BlockCopy(NamedTuple):
    """Physical blocks of one request, in token order, and where they are copied to or from."""

    device: Sequence[int]
    host: Sequence[int]


class Swapped(NamedTuple):
    """What a waiting request has in host memory: its first `tokens` tokens."""

    tokens: int
    host: Sequence[int]


class SwapSpace:
    """The host's blocks by number; one request holds each or nobody."""

    def __init__(self, blocks: int) -> None:
        self.total = blocks
        self.worth: Callable[[int, int], bool] | None = None  # whether so many tokens, in so many blocks, are copied
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """The caller has checked that `count <= free`."""
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def give(self, blocks: Sequence[int]) -> None:
        self._free += blocks

    def save(self, request: Request, tokens: int, blocks: int) -> BlockCopy | None:
        """Take host blocks for the first `tokens` tokens of a request, which are in its first blocks; None if there is
        nothing to copy, no room, or it is not worth it."""
        if not 0 < blocks <= self.free or (self.worth is not None and not self.worth(tokens, blocks)):
            return None
        request.swapped = Swapped(tokens, self.take(blocks))
        return BlockCopy(request.holding.block_table()[:blocks], request.swapped.host)

    def restore(self, request: Request, cached: int) -> BlockCopy | None:
        """Give back the host blocks of a request; what is to be copied into its blocks on the device, of which the
        first `cached` were found there."""
        swapped, request.swapped = request.swapped, None
        assert swapped is not None
        self.give(swapped.host)
        if len(swapped.host) <= cached:
            return None
        return BlockCopy(request.holding.block_table()[cached : len(swapped.host)], swapped.host[cached:])

    def drop(self, request: Request) -> None:
        """Forget what host memory has of a request."""
        if request.swapped is not None:
            self.give(request.swapped.host)
            request.swapped = None
