"""Engines that sleep are paid for and draw power: all of it is in the totals, and in each pool's and site's part."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_tables import LAW, replica_table

from calibrate.datasheet import find_device
from sim.results import energy
from sim.results.energy import ReplicaPower
from sim.results.folder import Run
from sim.results.recorder import EventRecorder
from sim.results.sleeping import stays
from sim.results.tables import REPLICAS, STEPS
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate

POOLS = ("edge", "central")
WATTS = {"edge": 60.0, "central": 120.0}  # of a sleeping engine, with one GPU of `LAW` and with two


@st.composite
def sleeps(draw: st.DrawFn) -> list[tuple[float, str, str]]:
    """(time, kind, pool) in order of time; nobody wakes who does not sleep."""
    told, asleep = [], dict.fromkeys(POOLS, 0)
    for time in sorted(draw(st.lists(st.integers(0, 80), max_size=12))):
        pool = draw(st.sampled_from(POOLS))
        wakes = asleep[pool] > 0 and draw(st.booleans())
        asleep[pool] += -1 if wakes else 1
        told.append((time / 8, "woken" if wakes else "asleep", pool))
    return told


def events_of(told: list[tuple[float, str, str]]) -> pl.DataFrame:
    events = EventRecorder()
    for time, kind, pool in told:
        events.append(time, -1, kind, amount=1 + POOLS.index(pool), detail=pool)
    return events.take_table()


REPLICAS_OF_BOTH = replica_table(
    {"pool": "edge", "site": "edge", "gpu_hour_price": 2.0},
    {"pool": "central", "site": "central", "gpu_hour_price": 4.0, "gpus": 2},
)


@given(sleeps())
def test_who_sleeps_longest_is_woken_first(told: list[tuple[float, str, str]]) -> None:
    found = stays(events_of(told), REPLICAS_OF_BOTH, {"edge": 0.5, "central": 0.25})
    assert found.schema == pl.Schema(REPLICAS)
    queues: dict[str, deque[list[Any]]] = {pool: deque() for pool in POOLS}
    expected = []
    for time, kind, pool in told:
        if kind == "asleep":
            expected.append([pool, time, None])
            queues[pool].append(expected[-1])
        else:
            queues[pool].popleft()[2] = time
    assert sorted(map(str, found.select("pool", "requested", "ended").rows())) == sorted(
        str((pool, since, until)) for pool, since, until in expected
    )
    assert (found["gpu_hour_price"] == 1.0).all() and (found["site"] == found["pool"]).all()


@given(sleeps(), st.integers(0, 40), st.integers(41, 80))
def test_joules_of_sleep_against_a_clock(told: list[tuple[float, str, str]], first: int, last: int) -> None:
    asleep = stays(events_of(told), REPLICAS_OF_BOTH, {})
    requests = pl.DataFrame(
        {"arrival": [first / 8], "finish": [last / 8], "output_tokens": [1], "status": ["finished"]}
    )
    powers = [ReplicaPower(LAW), ReplicaPower(LAW, gpus=2)]
    nothing = pl.DataFrame(schema=STEPS)
    found = energy.compute(requests, nothing, REPLICAS_OF_BOTH, powers, asleep=asleep)
    plain = energy.compute(requests, nothing, REPLICAS_OF_BOTH, powers)
    assert found is not None and plain is not None
    expected = dict.fromkeys(POOLS, 0.0)
    for moment in np.arange(first, last) / 8 + 1 / 16:
        for time, kind, pool in told:
            if time < moment:
                expected[pool] += WATTS[pool] / 8 * (1 if kind == "asleep" else -1)
    assert found["states"] == pytest.approx({**plain["states"], "asleep": sum(expected.values())})
    assert found["joules"] == pytest.approx(plain["joules"] + sum(expected.values()))
    for parts in ("pools", "sites"):
        assert found[parts] == pytest.approx({name: plain[parts][name] + expected[name] for name in POOLS})
    assert found["replicas"] == plain["replicas"]


SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 200,
            "arrivals": {"process": "poisson", "rate": 20},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 300, "high": 900},
                "output": {"distribution": "uniform", "low": 20, "high": 80},
            },
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "gpu_hour_price": 4.0,
}
SCALER = {
    "policy": "schedule",
    "max": 2,
    "sync_interval": 1,
    "steps": [{"at": 0, "replicas": 1}, {"at": 4, "replicas": 2}],
}
COLD = {"engine_init": 0.5, "graph_capture": 0.25}


def run(fleet: dict[str, Any]) -> Run:
    return simulate(make_scenario({**SCENARIO, "fleet": fleet}, {}, Path(), "s.yaml"))


def sleeping(share: float, ready: int) -> dict[str, Any]:
    return {**COLD, "sleep": {"replicas": 3, "ready": ready, "wake": 0.1, "share": share}}


def test_the_total_is_all_that_is_paid() -> None:
    result = run({"autoscaler": SCALER, "cold_start": sleeping(0.25, ready=2)})
    scaling, end = result.metrics["scaling"], result.requests["finish"].max()
    first = result.requests["arrival"].min()
    asleep = (2 * (4.0 - first) + (end - 4.0)) / 3600  # type: ignore[operator]
    assert scaling["asleep_gpu_hours"] == pytest.approx(asleep)
    assert scaling["asleep_cost"] == pytest.approx(1.0 * asleep)
    cost, tokens = result.metrics["cost"], result.requests["output_tokens"].sum()
    assert cost["total"] == pytest.approx(4.0 * scaling["gpu_hours"] + 1.0 * asleep)
    assert cost["per_million_output_tokens"] == pytest.approx(cost["total"] / tokens * 1e6)
    assert result.metrics["gpu_seconds"] == pytest.approx(3600 * scaling["gpu_hours"])
    drawn, idle = result.metrics["energy"], find_device("h100-sxm-80gb").idle
    assert drawn["states"]["asleep"] == pytest.approx(asleep * 3600 * idle)
    assert drawn["joules"] == pytest.approx(sum(drawn["states"].values()))
    assert ("fleet.cold_start.sleep.power", "idle") in {(one.name, one.value) for one in result.assumptions}


def test_sites_of_different_price_have_each_its_part() -> None:
    edge = {"gpu_hour_price": 1.0, "autoscaler": SCALER, "cold_start": sleeping(0.5, ready=1)}
    central = {"rtt": 0.05, "autoscaler": SCALER, "cold_start": sleeping(0.25, ready=3)}
    result = run({"sites": {"edge": edge, "central": central}})
    end, first = result.requests["finish"].max(), result.requests["arrival"].min()
    until_woken, after = 4.0 - first, end - 4.0  # type: ignore[operator]
    slept = {"edge": until_woken * 1 * 0.5, "central": (3 * until_woken + 2 * after) * 1.0}
    replicas = until_woken + 2 * after
    costs = {"edge": (replicas * 1.0 + slept["edge"]) / 3600, "central": (replicas * 4.0 + slept["central"]) / 3600}
    metrics = result.metrics
    assert metrics["scaling"]["asleep_cost"] == pytest.approx(sum(slept.values()) / 3600)
    assert metrics["cost"]["total"] == pytest.approx(sum(costs.values()))
    assert metrics["cost"]["sites"] == metrics["cost"]["pools"] == pytest.approx(costs)
    assert {name: own["cost"] for name, own in metrics["placement"]["sites"].items()} == pytest.approx(costs)
    assert {name: own["gpu_seconds"] for name, own in metrics["placement"]["sites"].items()} == pytest.approx(
        dict.fromkeys(costs, replicas)
    )


def test_a_fleet_where_nobody_may_sleep_pays_nothing_for_it() -> None:
    result = run({"autoscaler": SCALER, "cold_start": COLD})
    scaling = result.metrics["scaling"]
    assert scaling["asleep_cost"] is None and scaling["asleep_gpu_hours"] == 0.0
    assert result.metrics["cost"]["total"] == pytest.approx(4.0 * scaling["gpu_hours"])
