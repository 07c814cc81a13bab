"""Generation without a KV cache: nothing is kept, so every step computes the whole sequences of all who run."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from sim.engine.block_pool import NO_HIT, Hit, Holding, Ids
from sim.engine.plan import Chunk, Plan
from sim.engine.request import Request


class NoPool:
    """A `sim.engine.kv_pool.KvPool` that holds nothing and never runs out."""

    held = 0

    def __init__(self, blocks: int) -> None:
        self.total = blocks
        self.free = sys.maxsize

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        return True

    def take(self, count: int) -> Ids[int]:
        return Ids("i")

    def find(self, holding: Holding, tokens: int) -> Hit:
        return NO_HIT

    def admit(self, holding: Holding, hit: Hit, tokens: int, needed: int = 0) -> bool:
        return True

    def hold(self, holding: Holding, tokens: int) -> None:
        pass

    def blocks_missing(self, holding: Holding, tokens: int) -> int:
        return 0

    def cache_full_blocks(self, holding: Holding, tokens: int) -> None:
        pass

    def release(self, holding: Holding, *, resumable_tokens: int = 0) -> None:
        pass

    def forget(self) -> None:
        pass


class Decoding(Protocol):
    """What it asks of a scheduler, which says what each means."""

    def decoding(self, plan: Plan) -> list[Request]: ...

    def context(self, request: Request) -> int: ...


def whole_sequences(plan: Any, scheduler: Decoding) -> Plan:
    """What a step computes of which `plan`, a `Plan`, says what it gains.

    A sequence of c tokens that gains one is a prefill of c + 1 tokens with none cached, and a chunk is a prefill of all
    tokens up to its end.
    """
    assert isinstance(plan, Plan)
    computed = Plan(plan.budget)
    computed.chunks = [Chunk(chunk.request, 0, chunk.start + chunk.tokens) for chunk in plan.chunks]
    computed.chunks += [Chunk(request, 0, scheduler.context(request) + 1) for request in scheduler.decoding(plan)]
    computed.preempted, computed.victims, computed.resumed = plan.preempted, plan.victims, plan.resumed
    return computed
