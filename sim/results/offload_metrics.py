"""What the tiers behind the prefix cache did, in numbers: from the events of `sim.engine.offload`."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl


def compute(requests: pl.DataFrame, events: pl.DataFrame, *, block_size: int) -> dict[str, Any]:
    """`found`: prompt tokens that were on the device or fetched when their request was first scheduled, of all prompt
    tokens of requests that were. `fetched`, `prefetched`, `written` and `stored`: tokens (of whole blocks) that came to
    the device for a request that waited for them, before any asked, that went to host memory beside the steps, and that
    went on to disk; `from_disk`: of those fetched and prefetched. `wait`: seconds that a request waited for what was
    fetched for it, mean, p99 and max; null where none did.

    Args:
        requests, events: tables with the columns of `sim.results.tables`.
        block_size: tokens of a KV block.
    """
    scheduled = requests.filter(pl.col("first_scheduled").is_not_null())
    prompts = int(scheduled["prompt_tokens"].sum())
    fetches = events.filter(pl.col("kind") == "kv_fetch")
    asked = fetches.filter(pl.col("request_id").is_not_null())
    wait = np.sort(asked["seconds"].to_numpy())

    def tokens(moves: pl.DataFrame) -> int:
        return int(moves["amount"].sum()) * block_size

    return {
        "found": int(scheduled["cached_tokens"].sum()) / prompts if prompts else None,
        "fetched": tokens(asked),
        "prefetched": tokens(fetches) - tokens(asked),
        "from_disk": tokens(fetches.filter(pl.col("detail") == "from disk")),
        "written": tokens(events.filter(pl.col("kind") == "kv_write")),
        "stored": tokens(events.filter(pl.col("kind") == "kv_store")),
        "wait": {
            "mean": float(wait.mean()) if wait.size else None,
            "p99": float(np.percentile(wait, 99)) if wait.size else None,
            "max": float(wait[-1]) if wait.size else None,
        },
    }
