"""What an engine computes in one step, as its scheduler decided."""

from collections.abc import Sequence
from typing import NamedTuple

from calibrate.skew import Spread
from sim.engine.blocked_head import BlockedHead
from sim.engine.request import Request
from sim.engine.swap_space import BlockCopy


class Chunk(NamedTuple):
    """Prompt tokens [start, start + tokens) of a request; after a preemption the prompt goes on over its output."""

    request: Request
    start: int
    tokens: int

    @property
    def last(self) -> bool:
        """Whether it completes the prompt, so that a token is generated."""
        return self.start + self.tokens == self.request.target


class Plan:
    """One step: prefill chunks, and one token of each of `decodes` sequences."""

    __slots__ = (
        "blocked",
        "budget",
        "chunks",
        "decodes",
        "ending",
        "first_tokens",
        "full",
        "joined",
        "kv_tokens",
        "missed",
        "once",
        "paused",
        "preempted",
        "recomputed",
        "resumed",
        "scheduled",
        "spread",
        "starved",
        "swapped_in",
        "swapped_out",
        "victims",
    )

    def __init__(self, budget: int) -> None:
        self.budget = budget  # tokens still unused
        self.chunks: list[Chunk] = []
        self.decodes = 0
        self.joined = 0  # of them, that another engine computed the prompt of, and that go on here from this step on
        self.full = 0  # of them, that read no more tokens from step to step (`sim.engine.pruning.capped_batch`)
        self.kv_tokens = 0  # cached tokens that the decoding sequences read, summed
        self.spread: Spread | None = None  # of them
        self.paused = False  # who decodes stands still meanwhile
        self.once = False  # the next step may be another although nobody comes, leaves or finds too few blocks
        self.scheduled = 0.0  # when the scheduler made it
        self.blocked: BlockedHead | None = None  # who waits, has a prefix cached, and found too few blocks
        self.preempted = 0
        self.victims: Sequence[Request] = ()  # who was preempted
        self.resumed: Sequence[Request] = ()  # who had been, and was admitted again
        self.recomputed = 0  # prefill tokens that were computed before a preemption; known once it has advanced
        self.missed = 0  # prefill tokens that the prefix cache had, and evicted; likewise
        self.swapped_out: Sequence[BlockCopy] = ()
        self.swapped_in: Sequence[BlockCopy] = ()
        self.starved: list[Request] = []  # decoding, but left out of this step for want of budget
        self.first_tokens: list[Request] = []  # known once it has advanced
        self.ending: list[Request] = []
