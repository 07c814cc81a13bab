"""Where the KV cache of one engine lives: in paged blocks, in contiguous ranges, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ground.errors import UserError
from sim.engine.block_pool import BlockPool, Hit, Holding, Ids
from sim.engine.config import EngineConfig
from sim.engine.contiguous_pool import ContiguousPool, Reserved, reserved_slots
from sim.engine.no_cache import NoPool
from sim.engine.offload.evicting_pool import EvictingPool
from sim.engine.offload.fetching_pool import FetchingPool
from sim.engine.pruning.capped_pool import CappedPool
from sim.engine.request import Request


class KvPool(Protocol):
    """What the scheduler asks of it; `BlockPool` says what each means."""

    total: int
    free: int  # blocks that running requests may still take

    @property
    def held(self) -> int: ...

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool: ...

    def take(self, count: int) -> Ids[int]: ...

    def find(self, holding: Holding, tokens: int) -> Hit: ...

    def admit(self, holding: Holding, hit: Hit, tokens: int, needed: int = 0) -> bool: ...

    def hold(self, holding: Holding, tokens: int) -> None: ...

    def blocks_missing(self, holding: Holding, tokens: int) -> int: ...

    def cache_full_blocks(self, holding: Holding, tokens: int) -> None: ...

    def release(self, holding: Holding, *, resumable_tokens: int = 0) -> None: ...

    def forget(self) -> None: ...


def make_pool(config: EngineConfig) -> KvPool:
    blocks = config.kv_blocks - config.reserved_blocks
    if not config.kv_cache:
        return NoPool(blocks)
    if config.kv_reservation != "paged":
        return ContiguousPool(blocks, config.block_size, config.kv_reservation, config.max_model_len)
    if config.pruning is not None and (most := config.most_tokens) is not None:
        window = config.pruning.window
        return CappedPool(blocks, config.block_size, most, window.sinks if window is not None else 0)
    if config.kv_offload is not None:
        pool = EvictingPool if config.kv_offload.write == "on_eviction" else FetchingPool
        return pool(blocks, config.block_size)
    return BlockPool(blocks, config.block_size)


def new_holding(config: EngineConfig, request: Request) -> Holding:
    """What a request that arrives will hold, still empty.

    Raises:
        UserError: its prefix ids stand for tokens that do not make whole blocks.
    """
    if config.kv_reservation != "paged":
        prompt, output = request.prompt_tokens, request.output_tokens
        slots = reserved_slots(config.kv_reservation, prompt, output, config.max_model_len)
        return Reserved(slots, prompt + output - 1)
    if config.enable_prefix_caching and request.prefix_ids:
        return Holding(*_block_keys(request.prefix_ids, request.prefix_block_tokens, config.block_size))
    return Holding()


def _block_keys(ids: Sequence[int], id_tokens: int, size: int) -> tuple[Sequence[int], int]:
    """One key for each run of whole blocks, and the blocks in it, from chain ids of `id_tokens` tokens."""
    if id_tokens % size == 0:
        return ids, id_tokens // size
    if size % id_tokens == 0:
        step = size // id_tokens
        return ids[step - 1 :: step], 1
    raise UserError(
        f"prefix ids stand for {id_tokens} tokens and block_size is {size}: expected one to divide the other"
    )
