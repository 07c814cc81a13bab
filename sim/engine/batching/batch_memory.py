"""The memory cap of batches: who is let in needs, to his last token, no more than the KV pool has left beside all who
are inside. So nobody who runs is ever refused a block, and nobody is preempted.

A prefix that several share is counted for each of them: more may fit than are let in, never fewer.
"""

from __future__ import annotations

from sim.engine.config import EngineConfig
from sim.engine.contiguous_pool import reserved_slots
from sim.engine.request import Request


class BatchMemory:
    """Of one engine, in token slots. A request is inside from when it is let in until it has given back its blocks."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._free = (config.kv_blocks - config.reserved_blocks) * config.block_size
        self._inside: dict[Request, int] = {}

    def let_in(self, request: Request) -> bool:
        """Whether it fits; if so it is inside."""
        slots = self._slots(request)
        if slots > self._free:
            return False
        self._free -= slots
        self._inside[request] = slots
        return True

    def leaves(self, request: Request) -> None:
        self._free += self._inside.pop(request)

    def _slots(self, request: Request) -> int:
        config, prompt, output = self._config, request.prompt_tokens, request.output_tokens
        if not config.kv_cache:
            return 0
        if config.kv_reservation != "paged":
            return reserved_slots(config.kv_reservation, prompt, output, config.max_model_len)
        tokens, size = prompt + output - 1, config.block_size  # the last token is never computed
        if (most := config.most_tokens) is not None:
            tokens = min(tokens, most)
        return -(-tokens // size) * size
