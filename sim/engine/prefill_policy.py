"""How prompts and decodes share a step. One function and one entry of `PREFILL_POLICIES` each.

A policy is asked at every step, and answers with the plan of one kind alone, or with None: then running requests and
who waits share the token budget as in vLLM V1. Without chunked prefill that is Orca's iteration-level scheduling (Yu et
al., OSDI 2022): whole prompts beside those who decode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sim.engine.config import EngineConfig
from sim.engine.plan import Plan


class OneKind(Protocol):
    """What a policy asks of a scheduler."""

    config: EngineConfig

    @property
    def decoding_count(self) -> int:
        """Requests that decode."""

    def prompts_step(self, now: float) -> Plan:
        """A step that computes prompts alone, of who waits too; without chunks where none can be computed: `once` then
        says whether one might be at the next step, whatever comes."""

    def decodes_step(self, now: float) -> Plan:
        """A step of those who decode alone."""


def prefill_first(scheduler: OneKind, now: float) -> Plan | None:
    """While a prompt can be computed nothing else is, and who decodes stands still (vLLM V0's default,
    `core/scheduler.py`, `_schedule_default`, which admits whole prompts only: `enable_chunked_prefill` false).

    A prompt for which too few blocks are free preempts nobody who decodes: he goes on, until blocks come back.
    """
    prompts = scheduler.prompts_step(now)
    if prompts.chunks:
        return prompts
    plan = scheduler.decodes_step(now)
    if not plan.decodes and not plan.preempted:
        return None  # nobody decodes: if prompts hold the blocks that they lack, one of them must give way
    plan.once = prompts.once
    return plan


def decode_first(scheduler: OneKind, now: float) -> Plan | None:
    """No prompt is computed while more than `resume_below` requests decode.

    With 0 what one step computed decodes to its end before the next prompt. FasterTransformer's batches, which fill all
    seats before they decode, are `batching.policy` static with `prefill_first`.
    """
    resume_below = scheduler.config.resume_below or 0
    return scheduler.decodes_step(now) if scheduler.decoding_count > resume_below else None


# Policy → what chooses the kind of a step; None: they are all mixed.
PREFILL_POLICIES: dict[str, Callable[[OneKind, float], Plan | None] | None] = {
    "mixed": None,
    "prefill_first": prefill_first,
    "decode_first": decode_first,
}
