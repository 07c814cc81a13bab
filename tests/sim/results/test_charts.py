"""The pictures show what the tables say, with few points however long the run."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_tables import queue_run, request_tables, step_tables

from sim.results import charts
from sim.results.metric_names import LATENCIES
from sim.results.tables import REQUESTS, STEPS


def line(figure: object, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    trace = figure.data[index]  # type: ignore[attr-defined]
    return np.asarray(trace.x, float), np.asarray(trace.y, float)


def test_the_cdf_is_the_share_at_or_below() -> None:
    requests, _ = queue_run(700)
    x, y = line(charts.latency_cdf({"run": requests}, "ttft"))
    ttft = requests["ttft"].drop_nulls().to_numpy()
    below, at_or_below = (np.array([share(ttft, value).mean() for value in x]) for share in (np.less, np.less_equal))
    assert (below <= y).all()
    assert (y <= at_or_below).all()
    assert (x[0], x[-1]) == (ttft.min(), ttft.max())


def test_runs_lie_over_each_other_with_the_limit() -> None:
    runs = {"predicted": queue_run(100)[0], "measured": queue_run(100, seed=1)[0]}
    figure = charts.latency_cdf(runs, "e2e", limit=2.0)
    assert [trace.name for trace in figure.data] == ["predicted", "measured", "SLO limit 2 s"]
    assert len({trace.line.color for trace in figure.data}) == 3
    assert list(figure.data[2].x) == [2.0, 2.0]


def test_equal_runs_lie_on_the_diagonal() -> None:
    requests, _ = queue_run(300)
    x, y = line(charts.quantile_quantile(requests, requests, "tpot"), 1)
    assert (x == y).all()
    slower = requests.with_columns(pl.col("tpot") * 2)
    x, y = line(charts.quantile_quantile(slower, requests, "tpot"), 1)
    assert y == pytest.approx(2 * x)


def test_outliers_survive_thinning() -> None:
    requests = queue_run(3000)[0].with_columns(
        pl.when(pl.col("request_id") == 1234).then(99.0).otherwise("ttft").alias("ttft")
    )
    _, y = line(charts.latency_over_arrival({"run": requests}, "ttft", most_points=500))
    assert len(y) <= 500
    assert y.max() == 99.0


@settings(max_examples=40)  # each draws a figure
@given(request_tables())
def test_throughput_holds_every_output_token(requests: pl.DataFrame) -> None:
    figure = charts.throughput({"run": requests})
    end = max([x for column in ("arrival", "finish") for x in requests[column].drop_nulls()], default=0.0)
    done = requests.filter(pl.col("status") == "finished")
    # The rows are drawn as (arrivals, tokens, finishes), each a rate in a hundredth of the time.
    arrivals, tokens, finishes = (line(figure, index)[1].sum() * (end or 1.0) / 100 for index in range(3))
    assert arrivals == pytest.approx(len(requests))
    # What is made at the very beginning precedes the first edge.
    at_zero = (done["first_token"] == 0).sum()
    assert tokens == pytest.approx(done["output_tokens"].sum() - at_zero, abs=1 + 1e-6 if at_zero else 1e-6)
    assert finishes == pytest.approx(len(done))


@settings(max_examples=40)  # each draws a figure
@given(step_tables())
def test_the_timeline_sums_replicas(steps: pl.DataFrame) -> None:
    """At any time between two events, the line is the sum over replicas of the row then valid."""
    figure = charts.timeline({"fleet": steps}, kv_blocks=None)
    rows = list(steps.iter_rows(named=True))
    times = np.unique([row[key] for row in rows for key in ("start", "end")])
    middles = (times[:-1] + times[1:]) / 2
    for index, column in enumerate(("running", "waiting")):
        x, y = line(figure, index)
        drawn = [y[np.searchsorted(x, t, side="right") - 1] if t >= x[0] else 0 for t in middles]
        assert drawn == [sum(row[column] for row in rows if row["start"] <= t < row["end"]) for t in middles]
    x, y = line(figure, 2)
    for t in middles:
        last = {row["replica"]: row["kv_blocks"] for row in sorted(rows, key=lambda r: r["end"]) if row["end"] <= t}
        assert (y[np.searchsorted(x, t, side="right") - 1] if t >= x[0] else 0) == sum(last.values())


@given(st.integers(2000, 6000), st.integers(0, 99))
def test_thinned_lines_keep_every_span_and_peak(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    time, value = np.sort(random.uniform(0, 50, count)), random.integers(0, 1000, count)
    x, y = charts._thin_line(time, value, 50.0)
    assert len(x) <= 1600
    assert np.isin(np.stack((x, y), 1).view("f8,f8"), np.stack((time, value), 1).astype(float).view("f8,f8")).all()
    assert (x[0], x[-1], y.min(), y.max()) == (time[0], time[-1], value.min(), value.max())
    buckets = (time / 50.0 * 400).astype(int)
    thinned = (x / 50.0 * 400).astype(int)
    for bucket in np.unique(buckets)[::40]:
        assert y[thinned == bucket].max() == value[buckets == bucket].max()


def test_replicas_become_lines() -> None:
    _, steps = queue_run(100, replicas=3)
    replicas = charts.by_replica(steps)
    assert list(replicas) == ["replica 0", "replica 1", "replica 2"]
    assert sum(map(len, replicas.values())) == len(steps)
    figure = charts.timeline(replicas, kv_blocks=500)
    assert len(figure.data) == 9
    assert max(figure.data[2].y) == replicas["replica 0"]["kv_blocks"].max() / 500


def test_a_run_in_which_nothing_finished_is_drawn_empty() -> None:
    nothing = {"run": pl.DataFrame(schema=REQUESTS)}
    for latency in LATENCIES:
        assert len(charts.latency_cdf(nothing, latency).data) == 0
        charts.quantile_quantile(nothing["run"], nothing["run"], latency)
        charts.latency_over_arrival(nothing, latency)
    charts.throughput(nothing)
    charts.timeline({"run": pl.DataFrame(schema=STEPS)}, kv_blocks=None)


def test_wide_latencies_get_logarithmic_ticks_with_units() -> None:
    axis = charts.latency_axis([np.geomspace(0.002, 4.0, 100)])
    assert axis["type"] == "log"
    assert "5 ms" not in axis["ticktext"] or "1 s" in axis["ticktext"]
    assert "type" not in charts.latency_axis([np.linspace(1.0, 3.0, 100)])
    assert "type" not in charts.latency_axis([np.linspace(0.0, 3.0, 100)])
