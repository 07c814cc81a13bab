"""Batching policies, by name: when those who wait may join. A new one is one file here, a line in `BATCHINGS` and its
settings in `BatchingSettings`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sim.engine.batching.adaptive_window import AdaptiveWindow, AdaptiveWindowSettings
from sim.engine.batching.continuous import ContinuousSettings
from sim.engine.batching.fixed_window import FixedWindow, FixedWindowSettings
from sim.engine.batching.static import StaticBatches, StaticSettings
from sim.engine.batching.window import MakeWindow

# Policy → its window; None: there is none, who waits may join every step.
BATCHINGS: dict[str, MakeWindow | None] = {
    "continuous": None,
    "static": StaticBatches,
    "fixed_window": FixedWindow,
    "adaptive_window": AdaptiveWindow,
}

BatchingSettings = Annotated[
    ContinuousSettings | StaticSettings | FixedWindowSettings | AdaptiveWindowSettings, Field(discriminator="policy")
]
