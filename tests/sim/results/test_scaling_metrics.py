"""The numbers of a scaled run are what one finds who looks at every instant."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from engine_workloads import traces
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled_fleets import PLAIN, cold_starts, requests_at, scaled, scalers

from sim.fleet.fleet import FleetRun
from sim.results.scaling_metrics import compute
from sim.results.sleeping import stays


def numbers(result: FleetRun, initial: int) -> dict[str, Any]:
    return compute(result.requests, result.steps, result.replicas, result.events, initial={"": initial})


def naive(result: FleetRun, instants: int = 2000) -> dict[str, float]:
    """At each of so many instants: how many are ready and asked for, and whether somebody is waiting in vain."""
    requests, replicas = result.requests, result.replicas
    begin, end = float(requests["arrival"].min()), float(requests["finish"].max())  # type: ignore[arg-type]
    times = begin + (np.arange(instants) + 0.5) * (end - begin) / instants
    ended = replicas["ended"].fill_null(np.inf).to_numpy()
    since = replicas["ready"].fill_null(np.inf).to_numpy()
    asked_since = replicas["requested"].to_numpy()
    starts = {
        number: result.steps.filter(pl.col("replica") == number)["start"].to_list() for number in replicas["replica"]
    }
    ready = [int(((since <= time) & (ended > time)).sum()) for time in times]
    asked = [int(((asked_since <= time) & (ended > time)).sum()) for time in times]
    waiting = []
    rows = requests.select("replica", "arrival", "first_scheduled").rows()
    for time in times:
        held = False
        for replica, arrival, admitted in rows:
            if not arrival <= time < (np.inf if admitted is None else admitted):
                continue
            if replica < 0 or since[replica] > time:  # it had come before anybody was ready
                held = True
            else:
                held = held or any(arrival < start <= time for start in starts[replica])
        waiting.append(held)
    gpus = float(replicas["gpus"][0]) if len(replicas) else 0.0
    return {
        "mean": float(np.mean(ready)),
        "asked": float(np.mean(asked)),
        "gpu_hours": float(np.mean(asked)) * (end - begin) / 3600 * gpus,
        "under_provisioned": float(np.mean(waiting)),
    }


@settings(deadline=None, max_examples=15)
@given(traces(), scalers(), cold_starts(), st.integers(1, 3))
def test_they_are_what_is_counted_instant_by_instant(
    trace: pl.DataFrame, scaler: dict[str, Any], cold: dict[str, Any] | None, replicas: int
) -> None:
    config = PLAIN.model_copy(update={"max_num_seqs": 2})
    result = scaled(trace, scaler, cold=cold, replicas=replicas, config=config, gpus=2 if cold is None else 1)
    if result.requests["finish"].max() in (None, result.requests["arrival"].min()):
        return
    found, expected = numbers(result, replicas), naive(result)
    assert found["replicas"]["mean"] == pytest.approx(expected["mean"], abs=0.02)
    assert found["asked"] == pytest.approx(expected["asked"], abs=0.02)
    assert found["gpu_hours"] == pytest.approx(expected["gpu_hours"], rel=0.01)
    assert found["under_provisioned"] == pytest.approx(expected["under_provisioned"], abs=0.02)
    rounding = 1e-9  # a mean over time is a sum of products: of equal numbers it may be a last digit above them
    assert found["replicas"]["min"] - rounding <= found["replicas"]["mean"] <= found["replicas"]["max"] + rounding
    assert found["ups"] + found["downs"] == (result.events["kind"] == "scaled").sum()


def test_a_hand_made_run() -> None:
    steps = [{"at": 0, "replicas": 0}, {"at": 10, "replicas": 2}, {"at": 20, "replicas": 1}]
    schedule = {"policy": "schedule", "min": 0, "steps": steps}
    cold = {"engine_init": 4.0}
    result = scaled(requests_at([5.0, 30.0], output_tokens=1), schedule, cold=cold, replicas=1)
    found = numbers(result, 1)
    end = float(result.requests["finish"].max())  # type: ignore[arg-type]
    spans = 6.0 * 2 + (end - 20.0)  # ready from 14 s on, one of them until 20 s
    assert found["replicas"] == {"mean": pytest.approx(spans / (end - 5.0)), "max": 2, "min": 0}
    assert (found["ups"], found["downs"], found["starts"]) == (1, 2, 2)
    assert found["start"] == pytest.approx(4.0)
    assert found["gpu_hours"] == pytest.approx((10.0 + (end - 10.0)) / 3600)
    assert found["under_provisioned"] == pytest.approx((14.0 - 5.0) / (end - 5.0))


def test_sleeping_engines_cost_their_share() -> None:
    sleep = {"replicas": 2, "ready": 2, "wake": 0.0, "share": 0.1}
    steps = [{"at": 0, "replicas": 1}, {"at": 10, "replicas": 2}]
    result = scaled(requests_at([5.0, 30.0]), {"policy": "schedule", "steps": steps}, cold={"sleep": sleep}, gpus=4)
    replicas = result.replicas.with_columns(gpu_hour_price=pl.lit(30.0))
    asleep = stays(result.events, replicas, {"": 0.1})
    priced = compute(result.requests, result.steps, replicas, result.events, initial={"": 1}, asleep=asleep)
    end = float(result.requests["finish"].max())  # type: ignore[arg-type]
    hours = 4 * (2 * (10.0 - 5.0) + (end - 10.0)) / 3600
    assert priced["asleep_gpu_hours"] == pytest.approx(hours)
    assert priced["asleep_cost"] == pytest.approx(3.0 * hours)
    unpriced = stays(result.events, result.replicas, {"": 0.1})
    found = compute(result.requests, result.steps, result.replicas, result.events, initial={"": 1}, asleep=unpriced)
    assert found["asleep_cost"] is None and found["asleep_gpu_hours"] == priced["asleep_gpu_hours"]
    assert numbers(result, 1)["asleep_cost"] is None


def test_nothing_arrived() -> None:
    result = scaled(requests_at([1.0]).head(0), {"policy": "hpa"})
    found = numbers(result, 1)
    assert found["replicas"] == {"mean": None, "max": None, "min": None}
    assert found["under_provisioned"] is None
    assert found["gpu_hours"] == 0.0
