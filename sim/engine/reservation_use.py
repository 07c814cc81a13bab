"""What the token slots of a contiguous pool were for, over a run."""

from __future__ import annotations

from collections.abc import Sequence

from sim.engine.contiguous_pool import ContiguousPool


class ReservationUse:
    """Slots × seconds of one pool, from its first step to its last: tokens grow linearly within a row of equal steps.

    The kinds are those of the paper that `sim.engine.contiguous_pool` names; together they are the pool.

    Attributes:
        used: a token was there.
        coming: reserved for a token that came later.
        never_used: reserved for none that ever came.
        fragmented: free, while the request to be admitted next found no range although they were enough for it.
        free: free, and that was not so.
    """

    KINDS = ("used", "coming", "never_used", "fragmented", "free")

    def __init__(self, pool: ContiguousPool) -> None:
        self.used = self.coming = self.never_used = self.fragmented = self.free = 0.0
        self._pool = pool
        self._since: float | None = None  # the end of the last row
        self._tokens = 0  # that were there then
        self._state = self._row_state = self._now()

    def began(self) -> None:
        """A row of steps begins, with what was scheduled for it."""
        self._row_state = self._now()

    def ran(self, start: float, end: float, tokens: int, gone: int) -> None:
        """A row of steps ended, after which there are `tokens` tokens; `gone` went with those who finished."""
        if self._since is not None:
            self._add(start - self._since, self._tokens, self._state)
        self._add(end - start, (self._tokens + tokens + gone) / 2, self._row_state)
        self._since = end
        self._tokens = tokens
        self._state = self._now()

    def _now(self) -> tuple[int, int, int]:
        return self._pool.needed, self._pool.reserved, self._pool.fragmented

    def _add(self, seconds: float, tokens: float, state: tuple[int, int, int]) -> None:
        needed, reserved, fragmented = state
        self.used += seconds * tokens
        self.coming += seconds * (needed - tokens)
        self.never_used += seconds * (reserved - needed)
        self.fragmented += seconds * fragmented
        self.free += seconds * (self._pool.slots - reserved - fragmented)


def shares(uses: Sequence[ReservationUse]) -> dict[str, float | None]:
    """Kind → its share of the slots of all pools; null where no step was run."""
    sums = {kind: sum(getattr(use, kind) for use in uses) for kind in ReservationUse.KINDS}
    total = sum(sums.values())
    return {kind: amount / total if total else None for kind, amount in sums.items()}
