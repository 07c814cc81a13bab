"""What speculative decoding does not go together with."""

from __future__ import annotations

from typing import Any


def check_speculation(settings: Any) -> None:
    """Of a `sim.engine.config.EngineLimits`. How many tokens a step gives is known at its end alone, so nothing is
    scheduled ahead of that; and the drafts of a sequence need slots of their own in blocks.

    Raises:
        ValueError: settings that do not go together.
    """
    if settings.speculative is None:
        return
    others = {
        "async_scheduling true": settings.async_scheduling,
        f"pipeline_parallel {settings.pipeline_parallel}": settings.pipeline_parallel > 1,
        f"data_parallel {settings.data_parallel}": settings.data_parallel > 1,
        "kv_cache false": not settings.kv_cache,
        f"kv_reservation {settings.kv_reservation}": settings.kv_reservation != "paged",
        "preemption auto": settings.preemption == "auto",
    }
    if given := [name for name, is_given in others.items() if is_given]:
        raise ValueError(f"speculative is given, and so is {given[0]}; expected one of them")
