"""Energy and cost against a second-by-second account, and by hand."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from command_line import SCENARIO, TABLE
from hypothesis import given
from hypothesis import strategies as st
from run_tables import LAW, replica_table, request_tables, step_tables

from calibrate.datasheet import find_device
from sim.results import cost, energy
from sim.results.energy import STATES, ReplicaPower
from sim.results.metric_names import flatten
from sim.results.slo import Slo
from sim.results.tables import STEPS


@st.composite
def replica_tables(draw: st.DrawFn) -> pl.DataFrame:
    rows = []
    for number in range(3):
        start = draw(st.integers(0, 40)) / 8
        ready = draw(st.none() | st.integers(0, 40).map(lambda n, start=start: start + n / 8))
        ended = draw(st.none() | st.integers(0, 800).map(lambda n, ready=ready or start: ready + n / 8))
        rows.append({"pool": f"pool {number % 2}", "requested": start, "ready": ready, "ended": ended})
    return replica_table(*rows)


def watts_of(row: dict[str, Any], power: ReplicaPower) -> tuple[float, float]:
    """What prefill and decode have of a step's watts, once more and one step at a time."""
    prefill, decode = row["prefill_tokens"], row["decode_seqs"]
    alone = float(np.interp(decode / power.engines, LAW.sequences, LAW.decode))
    whole = prefill + decode
    return power.gpus * LAW.prefill * prefill / whole, power.gpus * alone * decode / whole


def replay(
    steps: pl.DataFrame, replicas: pl.DataFrame, power: ReplicaPower, first: float, last: float
) -> dict[str, float]:
    """Joules by state on a clock of 1/16 s: every time of the tables is a multiple of 1/8 s."""
    joules = dict.fromkeys(STATES, 0.0)
    rows = list(steps.filter(pl.col("prefill_tokens") + pl.col("decode_seqs") > 0).iter_rows(named=True))
    for replica in replicas.iter_rows(named=True):
        ended = last if replica["ended"] is None else replica["ended"]
        at_work = [row for row in rows if row["replica"] == replica["replica"]]
        for moment in (np.arange(first, last, 1 / 16) + 1 / 32).tolist():
            own = [row for row in at_work if row["start"] < moment < row["end"]]
            if own:
                for state, watts in zip(STATES, watts_of(own[0], power), strict=False):
                    joules[state] += watts / 16
            elif replica["requested"] < moment < ended:
                starting = replica["ready"] is None or moment < replica["ready"]
                joules["starting" if starting else "idle"] += power.gpus * LAW.idle / 16
    return joules


def within(steps: pl.DataFrame, replicas: pl.DataFrame) -> pl.DataFrame:
    """Steps while their replica takes requests."""
    lives = replicas.select("replica", "ready", until=pl.col("ended").fill_null(float("inf")))
    kept = steps.join(lives, on="replica", maintain_order="left").filter(
        pl.col("ready").is_not_null() & (pl.col("start") >= pl.col("ready")) & (pl.col("end") <= pl.col("until"))
    )
    return kept.select(list(STEPS))


@given(request_tables(), step_tables(), replica_tables(), st.integers(0, 5), st.integers(1, 2))
def test_joules_against_a_clock(
    requests: pl.DataFrame, steps: pl.DataFrame, replicas: pl.DataFrame, tokens: int, engines: int
) -> None:
    steps = within(steps.with_columns(prefill_tokens=pl.lit(tokens, pl.Int32)), replicas)
    power = ReplicaPower(LAW, gpus=4, engines=engines)
    found = energy.compute(requests, steps, replicas, [power] * 3, electricity_price=0.3)
    assert found is not None
    first, last = requests["arrival"].min(), requests["finish"].max()
    if first is None or last is None:
        assert found["joules"] is None and found["cost"] is None and set(found["states"].values()) == {None}
        return
    expected = replay(steps, replicas, power, first, last)
    assert found["states"] == pytest.approx(expected, abs=1e-6)
    assert found["joules"] == pytest.approx(sum(expected.values()), abs=1e-6)
    assert sum(found["replicas"].values()) == pytest.approx(found["joules"])
    assert sum(found["pools"].values()) == pytest.approx(found["joules"])
    assert found["cost"] == pytest.approx(found["joules"] / 3.6e6 * 0.3)
    if found["watts"]["mean"] is not None:
        assert found["watts"]["mean"] == pytest.approx(found["joules"] / (last - first))


def test_overlapping_rows_count_once() -> None:
    """Rows of a pipeline: as if the second began where the first ends."""
    step = dict.fromkeys(STEPS, 0) | {"replica": 0, "steps": 1, "decode_seqs": 1}
    rows = [step | {"start": 0.0, "end": 6.0}, step | {"start": 1.0, "end": 2.0}, step | {"start": 4.0, "end": 8.0}]
    requests = pl.DataFrame({"arrival": [0.0], "finish": [10.0], "output_tokens": [5], "status": ["finished"]})
    found = energy.compute(requests, pl.DataFrame(rows, schema=STEPS), replica_table({}), [ReplicaPower(LAW)])
    assert found is not None
    assert found["states"] == {"prefill": 0.0, "decode": 8 * 200.0, "idle": 2 * 60.0, "starting": 0.0, "asleep": 0.0}
    assert found["joules_per_output_token"] == 1720 / 5
    assert found["watts"] == {"mean": 172.0}
    assert found["cost"] is None


def test_a_device_that_nobody_knows_has_no_energy() -> None:
    nothing = pl.DataFrame(schema=STEPS)
    requests = pl.DataFrame({"arrival": [0.0], "finish": [1.0], "output_tokens": [1], "status": ["finished"]})
    powers = [ReplicaPower(LAW), None]
    assert energy.compute(requests, nothing, replica_table({}, {}), powers) is None


@given(replica_tables(), st.lists(st.integers(1, 8), min_size=3, max_size=3), st.integers(1, 30))
def test_cost_is_each_replicas_time_at_its_price(replicas: pl.DataFrame, prices: list[int], last: int) -> None:
    replicas = replicas.with_columns(gpu_hour_price=pl.Series(prices, dtype=pl.Float64), gpus=pl.lit(2, pl.Int32))
    total = 0.0
    for row in replicas.iter_rows(named=True):
        until = min(last, row["ended"] if row["ended"] is not None else last)
        total += max(0.0, until - max(1.0, row["requested"])) * 2 / 3600 * row["gpu_hour_price"]
    paid = cost.with_paid(replicas, 1.0, float(last))
    assert paid["cost"].sum() == pytest.approx(total)
    finished = pl.DataFrame({"prompt_tokens": [100, 300], "output_tokens": [10, 90]})
    found = cost.compute(total, finished, finished[:1], paid)
    assert found["per_million_output_tokens"] == pytest.approx(total / 100 * 1e6)
    assert found["per_million_tokens"] == pytest.approx(total / 500 * 1e6)
    assert (found["per_request"], found["per_good_request"]) == pytest.approx((total / 2, total))
    assert sum(found["pools"].values()) == pytest.approx(total) and "sites" not in found
    empty = cost.compute(total, finished[:0], finished[:0], None)
    assert {name: value for name, value in empty.items() if value is not None} == {"total": total}


def test_a_simulated_fleet_draws_power_and_says_on_whose_word(tmp_path: Any) -> None:
    from sim.study.scenario import make_scenario
    from sim.study.simulate import simulate

    (tmp_path / "trace.csv").write_text(TABLE)
    asked = SCENARIO | {"gpu_hour_price": 3.0, "electricity_price": 0.25, "fleet": {"replicas": 2}}
    run = simulate(make_scenario(asked, {}, tmp_path, "s.yaml"))
    numbers, device = flatten(run.metrics), find_device("h100-sxm-80gb")
    assert {a.name: a.value for a in run.assumptions if a.name.startswith("power.")} == {
        "power.idle": device.idle,
        "power.prefill": device.tdp,
        "power.decode": device.tdp,
    }
    duration = run.metrics["duration"]
    busy = sum(run.metrics["busy"]["replicas"].values()) * duration
    joules = busy * device.tdp + (2 * duration - busy) * device.idle
    assert numbers["energy.joules"] == pytest.approx(joules)
    assert numbers["energy.cost"] == pytest.approx(joules / 3.6e6 * 0.25)
    assert 2 * device.idle < numbers["energy.watts.mean"] < 2 * device.tdp  # type: ignore[operator]
    assert numbers["cost.per_request"] == pytest.approx(2 * duration / 3600 * 3.0 / 20)
    assert numbers["cost.per_good_request"] == numbers["cost.per_request"]
    assert run.metrics["slo"]["limits"] == Slo(ttft=0.5).limits
