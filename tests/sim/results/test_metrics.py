"""Metrics keep to their definitions: against numpy, against brute force, and against a run worked out by hand."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from run_tables import queue_run, request_tables, step_tables

from sim.results.metric_names import LATENCIES, flatten
from sim.results.metrics import STATUSES, compute
from sim.results.recorder import with_latencies
from sim.results.slo import Slo
from sim.results.tables import REQUESTS, STEPS

limits = st.none() | st.sampled_from([0.125, 1.0, 10.0, 60.0, 200.0])
slos = st.builds(Slo, ttft=limits, tpot=limits, e2e=limits)


def numbers(requests: pl.DataFrame, steps: pl.DataFrame, slo: Slo = Slo(), **given: Any) -> dict[str, Any]:  # noqa: B008
    return compute(requests, steps, slo=slo, **({"gpus": 4, "gpu_hour_price": 2.0, "kv_blocks_total": 300} | given))


@settings(max_examples=50)
@given(request_tables(), step_tables(), slos)
def test_counts_are_conserved_and_all_is_json(requests: pl.DataFrame, steps: pl.DataFrame, slo: Slo) -> None:
    metrics = numbers(requests, steps, slo)
    assert metrics["requests"]["total"] == len(requests) == sum(metrics["requests"][status] for status in STATUSES)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@settings(max_examples=50)
@given(request_tables(), step_tables(), slos, st.randoms(use_true_random=False))
def test_row_order_does_not_matter(requests: pl.DataFrame, steps: pl.DataFrame, slo: Slo, random: Any) -> None:
    def shuffled(table: pl.DataFrame) -> pl.DataFrame:
        return table[random.sample(range(len(table)), len(table))]

    assert numbers(shuffled(requests), shuffled(steps), slo) == numbers(requests, steps, slo)


@settings(max_examples=50)
@given(request_tables())
def test_percentiles_are_numpys(requests: pl.DataFrame) -> None:
    metrics = numbers(requests, pl.DataFrame(schema=STEPS))
    for latency in LATENCIES:
        rows = requests.filter(pl.col("status") == "finished")[latency].to_list()
        values = [value for value in rows if value is not None]
        if not values:
            assert set(metrics[latency].values()) == {None}
            continue
        assert metrics[latency]["mean"] == pytest.approx(np.mean(values))
        assert metrics[latency]["max"] == max(values)
        for percentile in (50, 90, 95, 99):
            assert metrics[latency][f"p{percentile}"] == pytest.approx(np.percentile(values, percentile))


@settings(max_examples=50)
@given(request_tables(), slos)
def test_attainment_counts_requests_one_by_one(requests: pl.DataFrame, slo: Slo) -> None:
    def meets(row: dict[str, Any]) -> bool:
        return row["status"] == "finished" and all(
            row[name] is None if name == "tpot" and row["output_tokens"] == 1 else row[name] <= limit
            for name, limit in slo.limits.items()
        )

    good = [row for row in requests.iter_rows(named=True) if meets(row)]
    metrics = numbers(requests, pl.DataFrame(schema=STEPS), slo)
    assert metrics["slo"]["attainment"] == (len(good) / len(requests) if len(requests) else None)
    if metrics["duration"]:
        assert metrics["goodput"]["requests"] == pytest.approx(len(good) / metrics["duration"])
        tokens = sum(row["output_tokens"] for row in good)
        assert metrics["goodput"]["output_tokens"] == pytest.approx(tokens / metrics["duration"])


@settings(max_examples=50)
@given(request_tables(), slos, st.sampled_from(["ttft", "tpot", "e2e"]), st.floats(1.0, 50.0))
def test_a_looser_limit_never_lowers_attainment(requests: pl.DataFrame, slo: Slo, name: str, factor: float) -> None:
    limit = slo.limits.get(name)
    looser = slo.model_copy(update={name: None if limit is None else limit * factor})
    strict, loose = (numbers(requests, pl.DataFrame(schema=STEPS), each)["slo"] for each in (slo, looser))
    if len(requests):
        assert loose["attainment"] >= strict["attainment"]


@settings(max_examples=50)
@given(request_tables(), slos)
def test_goodput_is_at_most_throughput(requests: pl.DataFrame, slo: Slo) -> None:
    metrics = numbers(requests, pl.DataFrame(schema=STEPS), slo)
    for kind in ("requests", "output_tokens"):
        good, all_of_it = metrics["goodput"][kind], metrics["throughput"][kind]
        assert (good is None) == (all_of_it is None)
        assert good is None or good <= all_of_it


@settings(max_examples=50)
@given(request_tables(), step_tables())
def test_shares_lie_between_none_and_all(requests: pl.DataFrame, steps: pl.DataFrame) -> None:
    metrics = numbers(requests, steps)
    shares = [metrics["kv"]["mean"], metrics["kv"]["peak"], metrics["prefix_hit_rate"], metrics["slo"]["attainment"]]
    shares += [metrics["busy"]["mean"], *metrics["busy"]["replicas"].values()]
    assert all(value is None or 0 <= value <= 1 + 1e-12 for value in shares)
    if metrics["kv"]["mean"] is not None and metrics["duration"] == requests["finish"].max():  # from time 0 on
        assert metrics["kv"]["mean"] <= metrics["kv"]["peak"] + 1e-12 or steps["end"].max() > metrics["duration"]


@given(step_tables(most=12), st.integers(1, 40))
def test_kv_use_and_busy_time_against_fine_sampling(steps: pl.DataFrame, end: int) -> None:
    """Replay the rows on a clock of 1/64 s: blocks linear within a row, constant between two rows."""
    requests = one_request(finish=float(end))
    metrics = numbers(requests, steps)
    times = (np.arange(end * 64) + 0.5) / 64
    held, busy = np.zeros(times.size), {}
    for (replica,), rows in steps.filter(pl.col("start") < end).group_by("replica"):
        ordered = list(rows.sort("start").iter_rows(named=True))
        knots, values = [0.0], [0.0]
        for row in ordered:
            knots += [row["start"], min(row["end"], end)]
            values += [values[-1], row["kv_blocks"]]
        held += np.interp(times, knots, values)
        busy[str(replica)] = np.mean([any(r["start"] <= t < r["end"] for r in ordered) for t in times])
    if not busy:
        assert metrics["kv"]["mean"] is None
        assert metrics["busy"]["replicas"] == {}
        return
    assert metrics["kv"]["mean"] == pytest.approx(held.mean() / 300, abs=1e-9)
    assert metrics["busy"]["replicas"] == pytest.approx(busy)
    assert metrics["busy"]["mean"] == pytest.approx(np.mean(list(busy.values())))


def one_request(**changes: Any) -> pl.DataFrame:
    row = {
        "request_id": 0,
        "replica": 0,
        "arrival": 0.0,
        "first_scheduled": 0.5,
        "first_token": 1.0,
        "finish": 10.0,
        "prompt_tokens": 100,
        "output_tokens": 10,
        "cached_tokens": 32,
        "preemptions": 1,
        "status": "finished",
    }
    return with_latencies(pl.DataFrame([row | changes], schema={name: REQUESTS[name] for name in row}))


def test_a_run_worked_out_by_hand() -> None:
    requests = pl.concat([one_request(), one_request(request_id=1, arrival=2.0, first_scheduled=4.0, finish=20.0)])
    rejected = one_request(request_id=2, arrival=5.0, status="rejected", **dict.fromkeys(("first_token", "finish")))
    requests = pl.concat([requests, rejected.with_columns(first_scheduled=None, queue=None)])
    step = dict.fromkeys(STEPS, 0) | {"replica": 0}
    steps = pl.DataFrame(
        [
            step | {"start": 0.5, "end": 1.0, "steps": 1, "prefill_tokens": 68, "kv_blocks": 10},
            step | {"start": 1.0, "end": 10.0, "steps": 9, "decode_seqs": 1, "kv_blocks": 20},
            step | {"start": 10.0, "end": 20.0, "steps": 3, "decode_seqs": 5, "kv_blocks": 0},
        ],
        schema=STEPS,
    )
    metrics = numbers(requests, steps, Slo(ttft=1.0, attainment=0.5))
    assert metrics["requests"] == {
        "total": 3,
        "finished": 2,
        "rejected": 1,
        "shed": 0,
        "timed_out": 0,
        "failed": 0,
        "unfinished": 0,
    }
    assert metrics["duration"] == 20.0
    assert metrics["throughput"] == {"requests": 0.1, "output_tokens": 1.0, "prompt_tokens": 10.0}
    # The second request's first token precedes its arrival in this table, so its TTFT is within any limit.
    assert metrics["slo"] == {"limits": {"ttft": 1.0}, "target": 0.5, "attainment": 2 / 3, "met": True}
    assert metrics["e2e"]["max"] == 18.0
    assert metrics["queue"]["mean"] == 1.25
    assert metrics["kv"]["peak"] == 20 / 300
    assert metrics["kv"]["mean"] == pytest.approx((0.5 * 5 + 9 * 15 + 10 * 10) / 20 / 300)
    assert metrics["prefix_hit_rate"] == 64 / 200
    assert metrics["preemptions"] == 3
    assert metrics["gpu_seconds"] == 80.0
    assert metrics["cost"]["total"] == pytest.approx(80 / 3600 * 2)
    assert metrics["cost"]["per_million_output_tokens"] == pytest.approx(80 / 3600 * 2 / 20 * 1e6)
    assert metrics["decode_batch"] == (9 * 1 + 3 * 5) / 12
    assert metrics["busy"]["replicas"] == {"0": 19.5 / 20}


def test_overlapping_steps_are_busy_once() -> None:
    step = dict.fromkeys(STEPS, 0) | {"replica": 0, "steps": 1}
    rows = [step | {"start": start, "end": end} for start, end in ((0.0, 6.0), (1.0, 2.0), (4.0, 8.0))]
    assert numbers(one_request(), pl.DataFrame(rows, schema=STEPS))["busy"]["mean"] == 0.8


def test_the_peak_is_of_the_fleet_at_one_time() -> None:
    step = dict.fromkeys(STEPS, 0) | {"steps": 1}
    rows = [
        step | {"replica": replica, "start": start, "end": start + 1, "kv_blocks": blocks}
        for replica, start, blocks in ((0, 0.0, 90), (0, 1.0, 10), (1, 1.0, 60), (1, 2.0, 80))
    ]
    assert numbers(one_request(), pl.DataFrame(rows, schema=STEPS))["kv"]["peak"] == 90 / 300


def test_what_cannot_be_computed_is_null() -> None:
    nothing = pl.DataFrame(schema=REQUESTS)
    metrics = flatten(numbers(nothing, pl.DataFrame(schema=STEPS), kv_blocks_total=None, gpus=None))
    counts = {name: value for name, value in metrics.items() if name.startswith("requests.")}
    assert set(counts.values()) == {0}
    assert {value for name, value in metrics.items() if name not in counts} == {None}
    assert numbers(one_request(), pl.DataFrame(schema=STEPS), gpu_hour_price=None)["cost"]["total"] is None


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValueError, match="'lost'"):
        numbers(one_request(status="lost"), pl.DataFrame(schema=STEPS))


def test_a_queue_at_light_load_waits_less_than_at_heavy_load() -> None:
    light, heavy = (numbers(*queue_run(800, rate=rate)) for rate in (2.0, 30.0))
    assert light["queue"]["p99"] < heavy["queue"]["p99"]
    assert light["busy"]["mean"] < heavy["busy"]["mean"]
    assert light["throughput"]["requests"] < heavy["throughput"]["requests"]


@pytest.mark.parametrize(
    "wrong", [{"ttft": 0}, {"tpot": -1.0}, {"e2e": float("inf")}, {"ttfb": 1}, {"attainment": 1.5}]
)
def test_a_wrong_slo_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Slo(**wrong)
