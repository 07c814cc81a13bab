"""What one replica can do, as a planner knows it from profiling: from the step times of its engine.

Rates are those of Dynamo's planner (`components/src/dynamo/planner/core/perf_model/agg.py`, and before it
`utils/perf_interpolation.py`); where it interpolates profiled sweeps or fits a regression, the engine's own step times
are asked, so they are exact and never need to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from sim.engine.config import EngineConfig


class Steps(Protocol):
    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int) -> float: ...


@dataclass(frozen=True)
class Rates:
    """At the best batch: requests/s of one replica, and its latencies there."""

    requests: float
    ttft: float
    itl: float


class Capacity:
    """Lengths are means, in tokens; every batch is made of equal requests."""

    def __init__(self, config: EngineConfig, steps: Steps) -> None:
        self.kv_tokens = config.kv_blocks * config.block_size
        self.seats = config.max_num_seqs
        self._budget = config.max_num_batched_tokens
        self._steps = steps

    def ttft(self, tokens: float, decodes: int = 0, kv_tokens: int = 0) -> float:
        """Seconds to prefill so many tokens in chunks of the budget, beside sequences that decode."""
        left, done, seconds = max(1, round(tokens)), 0, 0.0
        while left:
            chunk = min(left, max(1, self._budget - decodes))
            seconds += self._steps.step([(chunk, done)], decodes, kv_tokens)
            done += chunk
            left -= chunk
        return seconds

    def prefill_throughput(self, prompt: float) -> float:
        """Prompt tokens/s of a replica that only prefills, one prompt after the other."""
        return prompt / self.ttft(prompt)

    def itl(self, batch: float, context: float) -> float:
        """Seconds of a step that decodes so many sequences of that context."""
        count = max(1, round(batch))
        return self._steps.step([], count, round(count * context))

    def decode_throughput(self, itl: float, context: float) -> float:
        """Output tokens/s of a replica that only decodes, at the largest batch whose step takes at most `itl`; at a
        batch of one where none does."""
        best = 1 / self.itl(1, context)
        for batch in range(1, self._most(context) + 1):
            seconds = self.itl(batch, context)
            if seconds > itl:
                break
            best = batch / seconds
        return best

    def both(self, prompt: float, output: float, *, ttft: float = inf, itl: float = inf) -> Rates:
        """Of a replica that does both, each step decoding a batch and prefilling what makes up for those that end.

        The largest batch that keeps both limits, or a batch of one; at most what fits into the KV pool, has seats, and
        leaves budget for the prefills that it needs.
        """
        context = prompt + output / 2
        balanced = int(output * self._budget / (prompt + output))  # decodes + their prefills fill the budget
        best = self._at(1, prompt, output)
        for batch in range(2, min(self._most(context), self._budget - 1, balanced) + 1):
            rates = self._at(batch, prompt, output)
            if rates.itl > itl or rates.ttft > ttft:
                break
            best = rates
        return best

    def _at(self, batch: int, prompt: float, output: float) -> Rates:
        prefill = min(batch * prompt / output, max(1, self._budget - batch))
        kv_tokens = round(batch * (prompt + output / 2))
        seconds = self._steps.step([(max(1, round(prefill)), 0)], batch, kv_tokens)
        return Rates(batch / (output * seconds), self.ttft(prefill + prompt, batch, kv_tokens), seconds)

    def _most(self, context: float) -> int:
        return max(1, min(self.seats, int(self.kv_tokens / max(1.0, context))))
