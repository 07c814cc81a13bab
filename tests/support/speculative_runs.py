"""Step times that know of drafts, and engines that speculate, for the tests of both rooms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from engine_workloads import LinearStepTimes

from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun

Work = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class LinearVerifyTimes(LinearStepTimes):
    """A draft costs what a token costs, and drafting `lookup` seconds a sequence."""

    lookup: float = 0.0

    def verify(self, prefills: Work, verified: Work, spread: object = None) -> float:
        drafts = sum(new for new, _ in verified) - len(verified)
        kv_tokens = sum(cached for _, cached in verified)
        return self.step(prefills, len(verified), kv_tokens, spread) + self.per_token * drafts

    def drafting(self, prefills: Work, verified: Work, sequences: int, kv_tokens: int) -> float:
        return self.lookup * sequences


def speculating(config: EngineConfig, *, joining: str = "continuous", **settings: Any) -> EngineConfig:
    """The same engine, with speculative decoding and a policy of `batching`."""
    own = {"async_scheduling": False, "batching": {"policy": joining}, "speculative": settings}
    return EngineConfig(**{**config.model_dump(), **own})


def run(trace: pl.DataFrame, config: EngineConfig, *, leap: bool = True, **times: float) -> FleetRun:
    return equal_replicas(trace, config, LinearVerifyTimes(**times), leap=leap).run()


def total(result: FleetRun, kind: str) -> int:
    """What the events of one kind count."""
    return int(result.events.filter(pl.col("kind") == kind)["amount"].sum())
