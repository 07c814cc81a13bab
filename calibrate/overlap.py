"""Communication behind computation: a step's tokens are halved, and while one half computes the other exchanges.

What vLLM calls dual batch overlap and SGLang two-batch overlap. Both halves need the device and the links in turn, S
times each. With c seconds of computation and x of exchange a turn, the device or the links are busy without a gap from
the first turn on, 2 S max(c, x), and the shorter of them once more stands alone at an end: of C = 2 S c and X = 2 S x
that is max(C, X) + min(C, X) / (2 S).

The price is in C and X: two halves take longer than the whole, since kernels and collectives have a fixed part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from calibrate.exchange import Exchange
from calibrate.latency import StepLatency
from calibrate.model import ModelShape
from calibrate.parallelism import Parallelism
from calibrate.profile import Profile
from ground.assumption import Assumption


def overlapped(compute: float, exchange: float, turns: int) -> float:
    """Seconds until two halves are done that compute and exchange in `turns` turns each; both of both halves."""
    return max(compute, exchange) + min(compute, exchange) / (2 * turns)


class OverlapLatency(StepLatency):
    """A `StepLatency` whose steps of `min_tokens` or more are halved.

    Token-wise kernels hide what tensor-parallel ranks exchange, and experts what engines do. Attention would hide more,
    and is not counted as doing so: what stays exposed is an upper bound. Collectives that take multiprocessors from
    the kernels beside them are not modelled: in that it is a lower one.
    """

    def __init__(
        self, profile: Profile, model: ModelShape, *, parallelism: Parallelism, min_tokens: int, **settings: Any
    ) -> None:
        """The other arguments, and errors, are those of `StepLatency`."""
        super().__init__(profile, model, parallelism=parallelism, **settings)
        plain, experts = self.dense, self.experts
        self.exchange = OverlappedExchange(self.exchange, plain, experts, min_tokens)
        self.dense: Any = Halves(plain, min_tokens)
        self.experts: Any = None if experts is None else Halves(experts, min_tokens * parallelism.data)
        note = (
            f"steps of {min_tokens} tokens or more are halved: token-wise kernels of one half hide what the other "
            "exchanges; attention is not counted as hiding any, and collectives take nothing from kernels"
        )
        self.assumptions.append(Assumption("engine.overlap_collectives", "two halves", "", "assumed", note))


class Law(Protocol):
    def __call__(self, tokens: int, /) -> float: ...

    def covers(self, tokens: int, /) -> bool: ...


class Halves:
    """Seconds of both halves of so many tokens; of all at once where they are fewer than `least`."""

    def __init__(self, law: Law, least: int) -> None:
        self._law = law
        self._least = least

    def __call__(self, tokens: int) -> float:
        return self._law(tokens) if tokens < self._least else both(self._law, tokens)

    def covers(self, tokens: int) -> bool:
        return self._law.covers(tokens if tokens < self._least else tokens // 2)


def both(law: Callable[[int], float], tokens: int) -> float:
    """Of the two halves of `tokens`, the first being the larger."""
    return law(tokens - tokens // 2) + law(tokens // 2)


class OverlappedExchange(Exchange):
    """What of an exchange is not hidden."""

    def __init__(self, plain: Exchange, dense: Law, experts: Law | None, min_tokens: int) -> None:
        super().__init__(plain.model, plain.parallelism, plain.collectives)
        self._plain = plain
        self._dense, self._experts = dense, experts
        self._least = min_tokens

    def hidden_states(self, tokens: int) -> float:
        if tokens < self._least:
            return self._plain.hidden_states(tokens)
        compute, exchange = both(self._dense, tokens), both(self._plain.hidden_states, tokens)
        return overlapped(compute, exchange, self.reductions) - compute

    def experts(self, tokens: int) -> float:
        if tokens < self._least * self.parallelism.data or self._experts is None:
            return self._plain.experts(tokens)
        compute, exchange = both(self._experts, tokens), both(self._plain.experts, tokens)
        return overlapped(compute, exchange, self.model.layers) - compute
