"""Which settings of an engine do not go together with pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.engine.config import EngineLimits


def check_pruning(limits: EngineLimits) -> None:
    """Raises ValueError: `pruning` and what it does not go together with are both set."""
    pruning = limits.pruning
    if pruning is None:
        return
    others = {
        "kv_cache is false": not limits.kv_cache,
        f"data_parallel is {limits.data_parallel}": limits.data_parallel > 1,
        f"pipeline_parallel is {limits.pipeline_parallel}": limits.pipeline_parallel > 1,
        "speculative is given": limits.speculative is not None,
    }
    _refuse("pruning", others)
    most = limits.most_tokens
    if most is None:
        return
    name = "window" if pruning.window is not None else "heavy_hitters"
    of_blocks = {
        f"kv_reservation is {limits.kv_reservation}": limits.kv_reservation != "paged",
        f"swap_blocks is {limits.swap_blocks}": limits.swap_blocks > 0,
        "kv_offload is given": limits.kv_offload is not None,
        "session_retention is given": limits.session_retention is not None,
        f"capacity_policy is {limits.capacity_policy}": limits.capacity_policy != "max_utilization",
    }
    _refuse(f"pruning.{name}", of_blocks)
    if pruning.heavy_hitters is not None and limits.enable_prefix_caching:
        raise ValueError(
            "pruning.heavy_hitters is given and enable_prefix_caching is true; expected no prefix cache, since what a "
            "request keeps is its own"
        )
    if pruning.window is not None:
        sizes = {"window.sinks": pruning.window.sinks, "window.window": pruning.window.window}
    else:
        sizes = {"heavy_hitters.budget": most}
    for key, tokens in sizes.items():
        if tokens % limits.block_size:
            raise ValueError(f"pruning.{key} is {tokens}; expected whole blocks of {limits.block_size} tokens")


def _refuse(key: str, others: dict[str, bool]) -> None:
    for what, is_so in others.items():
        if is_so:
            raise ValueError(f"{key} is given and {what}; expected one of them")
