"""What one engine computes in a step, as far as its time depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from calibrate.skew import Spread


class Batch(NamedTuple):
    """What one engine computes in a step. `kv_tokens`: cached tokens that its decoding sequences read, summed."""

    prefills: Sequence[tuple[int, int]]  # (new tokens, tokens already cached)
    decodes: int
    kv_tokens: int
    spread: Spread | None = None  # None: the decoding sequences are equally long

    def one_token_each(self) -> Batch:
        """The same step; if no prefill computes more than one token, one kernel for all of it sees only decodes."""
        if not self.prefills or any(new != 1 for new, _ in self.prefills):
            return self
        cached = [tokens for _, tokens in self.prefills]
        decodes, kv_tokens = self.decodes + len(cached), self.kv_tokens + sum(cached)
        spread = self.spread
        if spread is not None or not self.decodes:
            squares, longest = spread or Spread(0, 0)
            spread = Spread(squares + sum(tokens * tokens for tokens in cached), max(longest, *cached))
        return Batch((), decodes, kv_tokens, spread)
