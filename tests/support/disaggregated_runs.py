"""Runs of a prefill and a decode pool on random workloads."""

from typing import Any

import polars as pl
from engine_workloads import LinearStepTimes
from hypothesis import strategies as st

from sim.engine.config import EngineConfig
from sim.fleet.disaggregation import Disaggregation
from sim.fleet.disaggregation_settings import DisaggregationSettings
from sim.fleet.fleet import Fleet, FleetRun
from sim.fleet.replica import ReplicaKind

BLOCK_BYTES = 1000
LAYERS = 4


@st.composite
def handovers(draw: st.DrawFn, **fixed: Any) -> dict[str, Any]:
    """Settings of a disaggregation, as plain data."""
    drawn: dict[str, Any] = {
        "prefill": {"replicas": draw(st.integers(1, 3))},
        "decode": {"replicas": draw(st.integers(1, 3))},
        "link": {"bandwidth": draw(st.sampled_from([2e3, 1e5, 1e9])), "latency": draw(st.sampled_from([0.0, 0.01]))},
        "fabric": draw(st.none() | st.just({"bandwidth": 5e3, "latency": 0.002})),
        "transfer": draw(st.sampled_from(["after_prefill", "layerwise"])),
        "first_token": draw(st.sampled_from(["decode", "prefill"])),
        "min_prompt": draw(st.sampled_from([0, 0, 20])),
        "min_prompt_counts": draw(st.sampled_from(["prompt", "uncached"])),
    }
    return drawn | fixed


def fleet(
    trace: pl.DataFrame,
    settings: dict[str, Any],
    prefill: EngineConfig,
    decode: EngineConfig,
    *,
    times: LinearStepTimes | None = None,
    leap: bool = True,
) -> Fleet:
    times = times or LinearStepTimes()
    chosen = DisaggregationSettings.model_validate(settings)
    kinds = ReplicaKind(prefill, times), ReplicaKind(decode, times)
    return Fleet(
        trace,
        lambda world, on_end: Disaggregation(world, chosen, *kinds, on_end, block_bytes=BLOCK_BYTES, layers=LAYERS),
        leap=leap,
    )


def run(*arguments: Any, **more: Any) -> FleetRun:
    return fleet(*arguments, **more).run()
