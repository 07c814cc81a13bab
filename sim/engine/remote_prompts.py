"""Prompts that one engine computes for another: who waits for his, who has it, and whose blocks are still to be read.

vLLM's rules (`vllm/v1/core/sched/scheduler.py`, `WAITING_FOR_REMOTE_KVS`). Blocks are held for the whole prompt before
any of it is sent, but for those that the prefix cache has; the request takes no seat meanwhile. When all have come the
request goes on at the next step that has a seat for it, and its blocks are cached as if they had been computed here.
The engine that computed the prompt holds its blocks until they have been read.

How far a request is then says its `target`, the tokens that it has in the KV cache, and `generated`:

- as in vLLM, target = prompt - 1 and generated = 0: the last prompt token is computed again, since the first token is
  sampled from it (`_update_waiting_for_remote_kv`);
- as in SGLang and TensorRT-LLM, target = prompt and generated = 1: the first token came with the blocks, and the next
  step computes its keys and values and the second token.

Either way that is a step of one token over the whole context: it decodes. Who has his prompt is admitted before all who
wait, whatever the policy: he holds blocks that they may wait for, and waits for none.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from sim.engine.block_pool import Hit
from sim.engine.decode_batch import DecodeBatch
from sim.engine.kv_pool import KvPool
from sim.engine.plan import Plan
from sim.engine.request import Request


class KvConnector(Protocol):
    """Whoever carries the KV blocks of one engine. None of these calls may come back to its scheduler at once."""

    def receive(self, request: Request, blocks: int) -> None:
        """There is room for its prompt, of which `blocks` are wanted: `Scheduler.received` when they have come."""

    def joined(self, request: Request, now: float) -> None:
        """It has its prompt and decodes from the step on that begins `now`."""

    def began(self, request: Request) -> None:
        """Its prompt, which another engine wants, is computed from this step on."""

    def prefilled(self, request: Request) -> None:
        """It is computed: the blocks are held until `Scheduler.give_back`."""


class RemotePrompts:
    def __init__(self, pool: KvPool, block_size: int) -> None:
        self.connector: KvConnector | None = None
        self.ready: deque[Request] = deque()  # who has his prompt, in the order in which they came
        self.kept: dict[Request, None] = {}  # who has ended, and holds blocks that another engine has not read
        self.coming: dict[Request, None] = {}
        self._pool = pool
        self._size = block_size

    def __len__(self) -> int:
        return len(self.coming) + len(self.ready)

    def expect(self, request: Request, hit: Hit) -> None:
        """It holds the blocks of `hit`, and more are free: for its prompt, and a token that comes with it. What is not
        there yet nobody finds in the prefix cache."""
        assert self.connector is not None
        self._pool.hold(request.holding, request.prompt_tokens + request.generated)
        self.coming[request] = None
        self.connector.receive(request, -(-request.prompt_tokens // self._size) - hit.tokens // self._size)

    def fetches(self, request: Request) -> None:
        """It holds blocks for its prompt, part of which is copied from a tier behind the prefix cache of this engine:
        it computes the rest itself (`sim/engine/offload`)."""
        self.coming[request] = None

    def came(self, request: Request) -> None:
        """The blocks that it wanted are there. It may have left meanwhile."""
        if self.coming.pop(request, False) is None:
            self.ready.append(request)

    def join(self, request: Request, plan: Plan, batch: DecodeBatch, now: float) -> None:
        """It was admitted, and the step `plan` computes a token of it."""
        assert self.connector is not None
        request.remote = False  # once preempted it computes all by itself
        # Not when they came: in the middle of a leap the pool does not know yet what its steps will have taken.
        self._pool.cache_full_blocks(request.holding, request.target)
        batch.start(request)
        plan.budget -= 1
        plan.decodes += 1
        plan.joined += 1
        plan.kv_tokens += request.target
        if batch.spread is not None:
            plan.spread = batch.spread.at(batch.step, batch.count)
        if not request.generated:
            plan.first_tokens.append(request)
        self.connector.joined(request, now)

    def began(self, request: Request) -> None:
        if self.connector is not None:
            self.connector.began(request)

    def drop(self, request: Request) -> bool:
        """Its client has gone: it gives back what it holds; whether it was here."""
        if request in self.coming:
            del self.coming[request]
        elif request in self.kept:
            del self.kept[request]
        elif request in self.ready:
            self.ready.remove(request)
        else:
            return False
        self._pool.release(request.holding)
        return True
