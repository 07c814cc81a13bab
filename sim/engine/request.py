"""One request inside an engine: what was asked, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sim.engine.block_pool import Holding
from sim.engine.swap_space import Swapped


class Request:
    """A request and its state; the scheduler changes it, nobody else does.

    While it decodes, every step computes one token of every request, so progress is not counted in the request but
    derived from the engine's step number: `computed = offset + step`. Times are seconds, None = not yet.
    """

    __slots__ = (
        "adapter",
        "admission",
        "arrival",
        "cached_tokens",
        "computed",
        "deadline",
        "finish",
        "finish_step",
        "first_scheduled",
        "first_token",
        "generated",
        "holding",
        "kept",
        "missed_tokens",
        "offset",
        "output_tokens",
        "preemptions",
        "prefix_block_tokens",
        "prefix_ids",
        "priority",
        "prompt_tokens",
        "remote",
        "repeats_until",
        "request_id",
        "session",
        "swapped",
        "target",
        "tenant",
        "way_back",
    )

    def __init__(
        self,
        request_id: int,
        arrival: float,
        prompt_tokens: int,
        output_tokens: int,
        prefix_ids: Sequence[int] = (),
        prefix_block_tokens: int = 16,
        priority: int = 0,
        session: str | None = None,
        adapter: str | None = None,
        tenant: str | None = None,
        deadline: float = math.inf,
    ) -> None:
        self.request_id = request_id
        self.arrival = arrival
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.prefix_ids = prefix_ids
        self.prefix_block_tokens = prefix_block_tokens
        self.priority = priority  # larger = more urgent
        self.session = session
        self.adapter = adapter  # None: the base model
        self.tenant = tenant
        self.deadline = deadline  # seconds after arrival
        self.way_back = 0.0  # seconds until its client sees its first token; inf: not before it has all

        self.start_over()

    def start_over(self) -> None:
        """Forget all that became of it: another engine takes it, and the one that had it is no more."""
        self.holding: Holding  # its blocks, once it was added to a scheduler
        self.swapped: Swapped | None = None  # while it waits
        self.remote = False  # its prompt is computed by another engine (`sim.engine.remote_prompts`)
        self.kept = False  # its blocks stay held when it ends, for another engine to read
        self.admission = 0  # place in the order of admission
        self.target = self.prompt_tokens  # tokens to compute before the next one is generated
        self.computed = 0  # of those, while it prefills
        self.generated = 0  # output tokens when it last began to decode or was preempted
        self.offset = 0  # while it decodes
        self.finish_step = 0  # the step that emits its last token, while it decodes

        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.finish: float | None = None
        self.cached_tokens = 0
        self.preemptions = 0
        self.repeats_until = 0  # tokens that were computed when it was preempted
        self.missed_tokens = 0  # that it computed although the prefix cache had held them

    def again(self, now: float) -> Request:
        """Another attempt of the same, sent `now`."""
        return Request(
            self.request_id,
            now,
            self.prompt_tokens,
            self.output_tokens,
            self.prefix_ids,
            self.prefix_block_tokens,
            self.priority,
            self.session,
            self.adapter,
            self.tenant,
            self.deadline,
        )
