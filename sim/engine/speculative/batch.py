"""The decoding requests of an engine that speculates: a step may give each of them another number of tokens.

So they are visited one by one, where `DecodeBatch` counts them. The rules are vLLM V1's
(`vllm/v1/core/sched/scheduler.py`): drafts count in the token budget, and are cut where it ends; blocks are held for
all of them before the step, and stay held when drafts are rejected, for the next step to write over; a draft is never
cached before it is accepted. Two differences: nothing is drafted beyond a request's last token, where vLLM drafts as
far as the model's length and throws away what is too much; and lookahead slots end there too.
"""

from __future__ import annotations

from calibrate.skew import Spread
from sim.engine.context_spread import ContextSpread
from sim.engine.decode_batch import DecodeBatch
from sim.engine.kv_pool import KvPool
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.speculative.drafter import Drafter
from sim.engine.speculative.settings import SpeculativeSettings


class SpeculativeBatch(DecodeBatch):
    """`step` stays 0, and what a request has computed is its `offset`; its `generated` is always up to date.

    `granted` says who is computed in the step that is scheduled, with how many drafts; `accepted` how many drafts of
    whom the last step that advanced has kept.
    """

    drafter: Drafter  # whoever drives the scheduler says who drafts

    def __init__(self, pool: KvPool, block_size: int, settings: SpeculativeSettings, *, spread: bool) -> None:
        super().__init__(pool, block_size, spread=False)
        self.granted: dict[Request, int] = {}
        self.accepted: dict[Request, int] = {}
        self.drafted = 0  # in the last step that advanced
        self._settings = settings
        if spread:
            self.spread = _LiveSpread()

    @property
    def verified(self) -> list[tuple[int, int]]:
        """Of who is computed in the step that is scheduled: tokens that are verified, and tokens in the KV cache."""
        return [(1 + drafts, request.offset) for request, drafts in self.granted.items()]

    def wanted(self, request: Request) -> int:
        """Tokens of it that the next step should compute."""
        left = request.output_tokens - request.generated
        return 1 + self.drafter.drafts(request, min(self._settings.tokens, left - 1)) if left > 1 else 1

    def blocks_missing(self, request: Request, tokens: int) -> int:
        """Until it can have so many computed."""
        return self._pool.blocks_missing(request.holding, self._slots(request, tokens))

    def grant(self, request: Request, tokens: int) -> None:
        """The next step computes so many of it; the caller has checked that there are blocks."""
        self._pool.hold(request.holding, self._slots(request, tokens))
        self.granted[request] = tokens - 1

    def joins(self, request: Request) -> None:
        """It began to decode for the step that is scheduled already, which computes one token of it."""
        self.granted[request] = 0

    def _slots(self, request: Request, tokens: int) -> int:
        last = request.prompt_tokens + request.output_tokens - 1
        return min(request.offset + tokens + self._settings.lookahead, last)

    def start(self, request: Request) -> None:
        request.offset = request.target
        request.finish_step = 0
        self.count += 1
        self.kv_tokens += request.target
        if self.spread is not None:
            self.spread.add(request)

    def stop(self, request: Request, granted: int = 0) -> None:
        self.granted.pop(request, None)
        self.count -= 1
        self.kv_tokens -= request.offset
        if self.spread is not None:
            self.spread.remove(request)
        request.finish_step = -1
        self._pool.cache_full_blocks(request.holding, request.offset)

    def settle(self, request: Request, tokens: int) -> None:
        """It holds its own already."""

    def horizon(self, free: int) -> int:
        """No two steps are known to be alike."""
        return 1

    def advance(self, plan: Plan, steps: int) -> None:
        granted, self.granted, self.accepted = self.granted, {}, {}
        self.drafted = sum(granted.values())
        for request, drafts in granted.items():
            accepted = self.drafter.accepted(request, drafts) if drafts else 0
            if drafts:
                self.accepted[request] = accepted
            request.offset += 1 + accepted
            request.generated += 1 + accepted
            self.kv_tokens += 1 + accepted
            if request.generated == request.output_tokens:
                self.stop(request)
                plan.ending.append(request)


class _LiveSpread(ContextSpread):
    """How unequal contexts are that change each in its own way: looked at when it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self._requests: dict[Request, None] = {}

    def add(self, request: Request) -> None:
        self._requests[request] = None

    def remove(self, request: Request) -> None:
        del self._requests[request]

    def at(self, step: int, decodes: int) -> Spread | None:
        contexts = [request.offset for request in self._requests]
        return Spread(sum(context * context for context in contexts), max(contexts)) if contexts else None
