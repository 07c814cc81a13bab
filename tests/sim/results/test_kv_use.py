"""The share of KV blocks that requests hold where replicas come and go is what one finds who looks all the time."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_tables import replica_table, step_tables

from sim.results.metrics import compute
from sim.results.slo import Slo
from sim.results.tables import STEPS
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate

BLOCKS = (100, 200, 300)


def kv(steps: pl.DataFrame, replicas: pl.DataFrame | None, last: float, total: int | None = None) -> dict[str, Any]:
    requests = pl.DataFrame(
        {"arrival": [0.0], "finish": [last], "prompt_tokens": [1], "output_tokens": [1], "status": ["finished"]}
        | {name: [1.0] for name in ("ttft", "tpot", "e2e", "queue", "first_scheduled")}
        | {"cached_tokens": [0], "preemptions": [0]}
    )
    numbers = compute(
        requests, steps, slo=Slo(), gpus=None, gpu_hour_price=None, kv_blocks_total=total, replicas=replicas
    )
    found: dict[str, Any] = numbers["kv"]
    return found


@st.composite
def lives(draw: st.DrawFn, steps: pl.DataFrame) -> pl.DataFrame:
    """Replicas that are there at least while they run; those of two never end, or one never came to be ready."""
    rows: list[dict[str, Any]] = []
    for number, blocks in enumerate(BLOCKS):
        own = steps.filter(pl.col("replica") == number)
        if own.is_empty():
            ready = draw(st.none() | st.integers(0, 100).map(lambda n: n / 8))
            ended = draw(st.none() | st.integers(0, 100).map(lambda n, ready=ready: (ready or 0.0) + n / 8))
        else:
            ready = own["start"].min() * draw(st.sampled_from([0.0, 0.5, 1.0]))  # type: ignore[operator]
            ended = draw(st.none() | st.integers(0, 80).map(lambda n, own=own: own["end"].max() + n / 8))
        rows.append({"kv_blocks": blocks, "ready": ready, "ended": ended})
    return replica_table(*rows)


@given(st.data(), step_tables(most=12), st.integers(1, 60))
def test_against_fine_sampling(data: st.DataObject, steps: pl.DataFrame, last: int) -> None:
    """Every time of the tables is a multiple of 1/8 s, or of half of that."""
    replicas = data.draw(lives(steps))
    found = kv(steps, replicas, float(last))
    times = (np.arange(last * 64) + 0.5) / 64
    mean = sampled(steps, replicas, times)
    within = steps.filter(pl.col("start") < last)
    if within.is_empty():
        assert found["mean"] is None and found["peak"] is None
        return
    assert found["mean"] == pytest.approx(mean, abs=1e-6)
    assert found["peak"] == pytest.approx(highest(within, replicas, last))


def sampled(steps: pl.DataFrame, replicas: pl.DataFrame, times: np.ndarray) -> float:
    """Blocks held over blocks that were there, both summed over the instants."""
    held, there = np.zeros(times.size), np.zeros(times.size)
    last = times[-1] + (times[1] - times[0]) / 2
    for row in replicas.iter_rows(named=True):
        ended = row["ended"] if row["ended"] is not None else np.inf
        if row["ready"] is not None:
            there += row["kv_blocks"] * ((times > row["ready"]) & (times < ended))
        own = steps.filter((pl.col("start") < last) & (pl.col("replica") == row["replica"])).sort("start")
        knots, values = [0.0], [0.0]
        for step in own.iter_rows(named=True):
            knots += [step["start"], min(step["end"], last)]
            values += [values[-1], step["kv_blocks"]]
        held += np.interp(times, knots, values) * (times < ended)
    return float(held.sum() / there.sum()) if there.any() else 0.0


def highest(steps: pl.DataFrame, replicas: pl.DataFrame, last: float) -> float:
    """The largest share just after anything has changed."""
    shares = []
    moments = {*steps["end"], *replicas["ready"].drop_nulls(), *replicas["ended"].drop_nulls()}
    for moment in moments:
        held = there = 0
        seen = min(moment, last)
        for row in replicas.iter_rows(named=True):
            if row["ready"] is None or seen < row["ready"] or (row["ended"] is not None and row["ended"] <= seen):
                continue
            there += row["kv_blocks"]
            done = steps.filter((pl.col("replica") == row["replica"]) & (pl.col("end") <= moment)).sort("end")
            held += done["kv_blocks"][-1] if len(done) else 0
        if there and (moment <= last or moment in set(steps["end"])):
            shares.append(held / there)
    return max(shares)


@given(step_tables(), st.integers(1, 60))
def test_where_nothing_comes_or_goes_it_is_that_of_all_blocks(steps: pl.DataFrame, last: int) -> None:
    replicas = replica_table(*({"kv_blocks": blocks} for blocks in BLOCKS))
    assert kv(steps, replicas, float(last), 600) == kv(steps, None, float(last), 600)


def test_what_a_crashed_replica_held_is_held_no_more() -> None:
    step = dict.fromkeys(STEPS, 0) | {"steps": 1}
    rows = [
        step | {"replica": 0, "start": 0.0, "end": 4.0, "kv_blocks": 80},
        step | {"replica": 1, "start": 0.0, "end": 8.0, "kv_blocks": 50},
    ]
    replicas = replica_table({"kv_blocks": 100, "ended": 5.0, "why": "crashed"}, {"kv_blocks": 100})
    found = kv(pl.DataFrame(rows, schema=STEPS), replicas, 10.0)
    assert found["mean"] == pytest.approx((80 / 2 * 4 + 80 + 50 / 2 * 8 + 50 * 2) / (100 * 5 + 100 * 10))
    assert found["peak"] == 0.5  # from 8 s on; both together, at 4 s, held 80 of 200


def test_it_is_not_known_where_a_replica_has_no_pool() -> None:
    step = dict.fromkeys(STEPS, 0) | {"steps": 1, "end": 1.0, "kv_blocks": 5}
    found = kv(pl.DataFrame([step], schema=STEPS), replica_table({"kv_blocks": 9}, {"kv_blocks": None}), 2.0)
    assert found == {"blocks": None, "mean": None, "peak": None}


def test_a_scaled_fleet_has_it() -> None:
    uniform = {"distribution": "uniform", "low": 200, "high": 900}
    data = {
        "trace": {
            "synth": {
                "requests": 200,
                "arrivals": {"process": "poisson", "rate": 20},
                "lengths": {"prompt": uniform, "output": uniform},
            }
        },
        "model": "Llama-3.1-8B",
        "profile": "datasheet:h100-sxm-80gb",
        "engine": {"kv_blocks": 1000},
        "fleet": {
            "autoscaler": {
                "policy": "schedule",
                "max": 3,
                "sync_interval": 1,
                "steps": [{"at": 0, "replicas": 1}, {"at": 3, "replicas": 3}],
            }
        },
    }
    run = simulate(make_scenario(data, {}, Path(), "s.yaml"))
    found, end = run.metrics["kv"], run.requests["finish"].max()
    first = run.requests["arrival"].min()
    times = np.linspace(first, end, 20_001)  # type: ignore[arg-type]
    assert run.replicas is not None
    assert found["mean"] == pytest.approx(sampled(run.steps, run.replicas, (times[1:] + times[:-1]) / 2), rel=1e-3)
    assert found["mean"] < found["peak"] <= 1 and found["blocks"] is None
