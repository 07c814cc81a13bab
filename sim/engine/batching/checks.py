"""What batches do not go together with."""

from __future__ import annotations

from typing import Any


def check_batching(settings: Any) -> None:
    """Of a `sim.engine.config.EngineLimits`.

    Raises:
        ValueError: settings that do not go together.
    """
    batching = settings.batching
    if batching.policy == "continuous":
        return
    if batching.cap is not None and batching.cap > settings.max_num_seqs:
        raise ValueError(f"batching.cap is {batching.cap}; expected at most max_num_seqs ({settings.max_num_seqs})")
    # Several engines have a queue each; who waits for blocks from a tier neither waits nor runs.
    others = {"data_parallel": settings.data_parallel > 1, "kv_offload": settings.kv_offload is not None}
    if given := [name for name, is_given in others.items() if is_given]:
        raise ValueError(f"batching.policy is {batching.policy} and {given[0]} is given; expected one of them")
