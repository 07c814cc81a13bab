"""Fleets that are scaled by a policy, with engines whose step times follow a simple law."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from engine_workloads import LinearStepTimes
from hypothesis import strategies as st
from pydantic import TypeAdapter

from sim.engine.config import EngineConfig
from sim.fleet.autoscaler import Autoscaler
from sim.fleet.autoscaling import POLICIES, AutoscalerSettings
from sim.fleet.autoscaling.capacity import Capacity
from sim.fleet.autoscaling.policy import PolicySetting
from sim.fleet.cold_start import ColdStart
from sim.fleet.cold_start_settings import ColdStartSettings
from sim.fleet.fleet import Fleet, FleetRun
from sim.fleet.pool import Pool
from sim.fleet.replica import ReplicaKind
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World

PLAIN = EngineConfig(kv_blocks=400, block_size=16, max_num_seqs=8, max_num_batched_tokens=256)
SLOW = LinearStepTimes(base=0.05)
COLD = {"node_provision": 7.0, "engine_init": 4.0, "graph_capture": 1.5}
FAST = {"sync_interval": 5.0, "scrape_interval": 5.0, "max": 12}


def requests_at(arrivals: Sequence[float], prompt_tokens: int = 40, output_tokens: int = 20) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "request_id": range(len(arrivals)),
            "arrival": sorted(float(arrival) for arrival in arrivals),
            "prompt_tokens": [prompt_tokens] * len(arrivals),
            "output_tokens": [output_tokens] * len(arrivals),
        }
    )


def day(seconds: float = 240.0, low: float = 0.5, high: float = 12.0, seed: int = 0) -> pl.DataFrame:
    """A day compressed to minutes: a Poisson process whose rate is a sine from `low` to `high` requests/s and back.

    An engine of `SLOW` steps and `PLAIN` seats serves about seven a second.
    """
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / high, size=round(1.5 * high * seconds)))
    times = times[times < seconds]
    rate = low + (high - low) * (1 - np.cos(2 * np.pi * times / seconds)) / 2
    return requests_at(times[random.random(len(times)) < rate / high].tolist())


def scaled(trace: pl.DataFrame, settings: dict[str, Any] | None, **more: Any) -> FleetRun:
    """What such a `fleet` did."""
    return fleet(trace, settings, **more).run()


def fleet(
    trace: pl.DataFrame,
    settings: dict[str, Any] | None,
    *,
    cold: dict[str, Any] | None = None,
    replicas: int = 1,
    config: EngineConfig = PLAIN,
    times: Any = None,
    seed: int = 0,
    leap: bool = True,
    gpus: int = 1,
) -> Fleet:
    """`settings` are of an autoscaler, `cold` of a cold start, whose missing numbers take no time."""
    steps = times or LinearStepTimes()
    kind = ReplicaKind(config, steps, gpus=gpus)

    def make(world: World, on_end: OnEnd) -> Service:
        if settings is None:
            pool = Pool(world, kind, on_end, replicas=replicas, router="least_outstanding")
            start(world, pool)
            return pool
        checked = TypeAdapter(AutoscalerSettings).validate_python({**FAST, **settings})
        setting = PolicySetting(Capacity(config, steps), lambda _: np.zeros(0), seed)
        scaler = Autoscaler(world, checked, POLICIES[checked.policy](checked, setting), on_end)
        pool = Pool(world, kind, scaler.ended, replicas=replicas, router="least_outstanding")
        begun = start(world, pool)
        scaler.drive(pool, *(() if begun is None else (begun.pending,)))
        return scaler

    def start(world: World, pool: Pool) -> ColdStart | None:
        if cold is None:
            return None
        given = ColdStartSettings.model_validate({"engine_init": 0.0, "graph_capture": 0.0, **cold})
        return ColdStart(world, pool, given)

    return Fleet(trace, make, seed=seed, leap=leap)


def asked_over_time(result: FleetRun, begin: float, end: float, instants: int = 20_000) -> np.ndarray:
    """How many replicas are asked for and not ended at each of so many instants, counted one by one."""
    since, until = result.replicas["requested"].to_numpy(), result.replicas["ended"].fill_null(np.inf).to_numpy()
    times = np.linspace(begin, end, instants, endpoint=False) + (end - begin) / instants / 2
    return np.array([int(((since <= time) & (until > time)).sum()) for time in times])


@st.composite
def scalers(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that scale often in a run of some seconds."""
    quick = {
        "sync_interval": draw(st.sampled_from([0.5, 1.0])),
        "scrape_interval": draw(st.sampled_from([0.0, 0.5, 0.7])),
    }
    down = {"scale_down": {"stabilisation_window": draw(st.sampled_from([0, 2]))}}
    chosen = draw(
        st.sampled_from(
            [
                {"policy": "hpa", "metrics": [{"average_value": 2.0}], **down},
                {"policy": "keda", "polling_interval": 1.0, "cooldown_period": 1.5, **down},
                {"policy": "planner", "predictor": "constant", "throughput_interval": 2.0, "ttft": 0.2},
                {"policy": "predictive", "interval": 1.0, "forecaster": "naive", "down_window": 1.0},
                {
                    "policy": "schedule",
                    "min": 0,
                    "period": 3.0,
                    "steps": [{"at": 0, "replicas": 1}, {"at": 1, "replicas": 5}, {"at": 2, "replicas": 0}],
                },
            ]
        )
    )
    return {**quick, "victims": draw(st.sampled_from(["youngest", "least_loaded"])), "max": 6, **chosen}


@st.composite
def cold_starts(draw: st.DrawFn) -> dict[str, Any] | None:
    """None, or parts of about as long as a decision's interval."""
    if draw(st.booleans()):
        return None
    cold: dict[str, Any] = {
        "node_provision": draw(st.sampled_from([0.0, 0.3, 1.1])),
        "engine_init": draw(st.sampled_from([0.0, 0.4])) if draw(st.booleans()) else {"mean": 0.5, "deviation": 0.3},
        "graph_capture": 0.1,
    }
    if draw(st.booleans()):
        cold |= {"image_bytes": 100, "image_bandwidth": 200.0}
    source = draw(st.sampled_from([None, "disk", "host", "shared", "peer"]))
    if source is not None:
        fallback = {"fallback_bandwidth": 100.0} if source == "peer" else {}
        cold["weights"] = {"source": source, "bandwidth": 300.0, "bytes": 90, **fallback}
    if draw(st.booleans()):
        cold["nodes"] = {
            "gpus": draw(st.integers(2, 4)),
            "ready": draw(st.integers(0, 2)),
            "max": draw(st.integers(3, 4)),
        }
        cold["nodes"]["keep"] = draw(st.sampled_from([0.0, 0.5, 600.0]))
    if draw(st.booleans()):
        level = draw(st.sampled_from([1, 2]))
        cold["sleep"] = {"replicas": 2, "ready": draw(st.integers(0, 2)), "level": level, "wake": 0.2, "share": 0.1}
    return cold
