"""A run's OpenMetrics text, read back with the parser of prometheus_client, against the run's own numbers."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openmetrics_files import Scrape, last_totals, scrapes, series, times_rise
from run_tables import queue_run, replica_table, request_tables
from telemetry_runs import run_of, simulated

from ground.errors import UserError
from sim.results.diagnosis.attribution import preempted_intervals
from sim.results.folder import Run
from sim.results.telemetry.openmetrics import Written, write_openmetrics
from sim.results.telemetry.vllm_metrics import families

EPOCH = 1_767_225_600
PRESETS = ("vllm-0.11", "vllm-0.19", "reference")


def text_of(run: Run, folder: Path, interval: float = 1.0, **more: Any) -> tuple[str, Written]:
    path = folder / "metrics.txt"
    written = write_openmetrics(run, path, interval=interval, epoch=EPOCH, **more)
    return path.read_text(encoding="utf-8"), written


def of_replica(page: Scrape, replica: int) -> dict[str, float]:
    """One replica's gauges, counters, sums and counts by name."""
    return {
        name.removeprefix("vllm:"): value
        for (name, labels), value in page.items()
        if dict(labels)["instance"] == f"replica-{replica}" and not name.endswith("_bucket")
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_totals_are_the_runs_own(preset: str, tmp_path: Path) -> None:
    run = simulated(preset)
    text, written = text_of(run, tmp_path)
    totals = {name.removeprefix("vllm:"): value for name, value in last_totals(text).items()}
    metrics, done = run.metrics, run.requests.filter(pl.col("status") == "finished")
    assert metrics["preemptions"] > 0 and metrics["prefix_hit_rate"] > 0, "the run must show them"
    assert totals["request_success_total"] == metrics["requests"]["finished"] == len(done)
    assert totals["generation_tokens_total"] == done["output_tokens"].sum()
    assert totals["generation_tokens_total"] / metrics["duration"] == metrics["throughput"]["output_tokens"]
    assert totals["prompt_tokens_total"] / metrics["duration"] == metrics["throughput"]["prompt_tokens"]
    assert totals["num_preemptions_total"] == metrics["preemptions"]
    assert totals["prefix_cache_hits_total"] / totals["prefix_cache_queries_total"] == metrics["prefix_hit_rate"]
    for name, latency in (
        ("e2e_request_latency", "e2e"),
        ("time_to_first_token", "ttft"),
        ("request_queue_time", "queue"),
    ):
        assert totals[f"{name}_seconds_count"] == len(done)
        assert totals[f"{name}_seconds_sum"] / len(done) == pytest.approx(metrics[latency]["mean"], rel=1e-12)
    decode = (done["finish"] - done["first_token"]).sum()
    assert totals["request_decode_time_seconds_sum"] == pytest.approx(decode, rel=1e-12)
    assert totals["inter_token_latency_seconds_sum"] == pytest.approx(decode, rel=1e-9)
    assert totals["inter_token_latency_seconds_count"] == (done["output_tokens"] - 1).sum()
    assert totals["request_prompt_tokens_sum"] == done["prompt_tokens"].sum()
    assert totals["request_generation_tokens_sum"] == done["output_tokens"].sum()
    assert {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"} <= totals.keys()
    assert totals["num_requests_running"] == totals["num_requests_waiting"] == totals["kv_cache_usage_perc"] == 0
    if preset == "vllm-0.19":
        assert totals["request_time_per_output_token_seconds_sum"] == pytest.approx(done["tpot"].sum(), rel=1e-12)
        assert "time_per_output_token_seconds_sum" not in totals
    # All but those that were preempted have their tokens from the steps.
    assert written.spaced_by_steps >= len(done.filter(pl.col("preemptions") == 0, pl.col("output_tokens") > 1))


def test_tokens_of_steps_are_those_of_requests(tmp_path: Path) -> None:
    """Where nobody is preempted every step's tokens are some request's."""
    requests = simulated().requests.filter(pl.col("preemptions") == 0)
    assert len(requests) > 100
    run = simulated()
    text, _ = text_of(run, tmp_path)
    totals = last_totals(text)
    both = totals["vllm:prompt_tokens_total"] + totals["vllm:generation_tokens_total"]
    # A preempted request's token that its second prefill gives is in no step's decodes.
    lacking = both - totals["vllm:iteration_tokens_total_sum"]
    assert 0 <= lacking <= run.metrics["preemptions"]


@pytest.mark.parametrize("preset", PRESETS)
def test_counters_never_fall_and_time_goes_on(preset: str, tmp_path: Path) -> None:
    text, written = text_of(simulated(preset), tmp_path)
    assert text.endswith("\n# EOF\n") and times_rise(text)
    grows = ("_total", "_count", "_sum", "_bucket")
    found = series(text)
    assert {len(points) for points in found.values()} == {written.samples // 2}
    for (name, _), points in found.items():
        values = [value for _, value in points]
        assert min(values) >= 0, name
        if name.endswith(grows):
            assert all(after >= before for before, after in pairwise(values)), name
    names = {name for name, _ in found}
    for family in families(preset):
        ending = {"gauge": "", "counter": "_total", "histogram": "_bucket"}[family.kind]
        assert f"vllm:{family.name}{ending}" in names


@pytest.mark.parametrize("preset", PRESETS)
def test_gauges_are_naive_counts(preset: str, tmp_path: Path) -> None:
    run = simulated(preset)
    text, _ = text_of(run, tmp_path, interval=0.125)
    done = run.requests.filter(pl.col("status") == "finished").sort("request_id")
    owner, lost, again = preempted_intervals(done, run.events)
    rows = done.to_dicts()
    away = [(rows[row], begin, end) for row, begin, end in zip(owner, lost, again, strict=True)]
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "request_success")
    pages = scrapes(text, gauges)
    assert len(pages) > 20 and away
    for stamp, page in pages.items():
        now = round(stamp - EPOCH, 3)
        for replica in (0, 1):
            shown = of_replica(page, replica)
            out = sum(row["replica"] == replica and begin <= now < end for row, begin, end in away)
            own = [row for row in rows if row["replica"] == replica]
            running = sum(row["first_scheduled"] <= now < row["finish"] for row in own) - out
            waiting = sum(row["arrival"] <= now < row["first_scheduled"] for row in own) + out
            assert (shown["num_requests_running"], shown["num_requests_waiting"]) == (running, waiting)
            assert shown["request_success_total"] >= 0
            assert 0 <= shown["kv_cache_usage_perc"] <= 1
            if preset != "vllm-0.19":  # there a step ahead is scheduled before it begins
                step = run.steps.filter(
                    (pl.col("replica") == replica) & (pl.col("start") <= now) & (pl.col("end") > now)
                )
                assert step.is_empty() or step["running"].item() == running


@settings(max_examples=12)
@given(request_tables(), st.sampled_from([37.5, 100.0]))
def test_any_tables_of_requests(requests: pl.DataFrame, interval: float) -> None:
    run = run_of(requests)
    with TemporaryDirectory() as folder:
        text, written = text_of(run, Path(folder), interval=interval)
    assert "iteration_tokens_total" in written.left_out and "kv_cache_usage_perc" in written.left_out
    rows = requests.filter((pl.col("status") == "finished") & (pl.col("replica") >= 0)).to_dicts()
    if not written.replicas:
        assert text == "# EOF\n" and not rows
        return
    bounds = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
    shown_only = ("num_requests_running", "prompt_tokens", "generation_tokens", "request_success",
                  "e2e_request_latency_seconds")  # fmt: skip
    for stamp, page in scrapes(text, shown_only).items():
        now = round(stamp - EPOCH, 3)
        for replica in {row["replica"] for row in rows}:
            own, shown = [row for row in rows if row["replica"] == replica], of_replica(page, replica)
            assert shown["num_requests_running"] == sum(row["first_scheduled"] <= now < row["finish"] for row in own)
            assert shown["prompt_tokens_total"] == sum(row["prompt_tokens"] for row in own if row["first_token"] <= now)
            ended = [row for row in own if row["finish"] <= now]
            assert shown["request_success_total"] == 0  # of the reasons the last, abort
            assert shown["e2e_request_latency_seconds_count"] == len(ended)
            for bound in bounds:
                labels = [
                    ("engine", "0"),
                    ("instance", f"replica-{replica}"),
                    ("le", str(bound)),
                    ("model_name", "tiny-llama"),
                ]
                bucket = page["vllm:e2e_request_latency_seconds_bucket", tuple(labels)]
                assert bucket == sum(row["e2e"] <= bound for row in ended)
            least = sum(row["output_tokens"] for row in ended)
            begun = [row for row in own if row["first_token"] <= now]
            assert least <= shown["generation_tokens_total"] <= sum(row["output_tokens"] for row in begun)
            assert shown["generation_tokens_total"] >= len(begun)


def test_a_replica_is_sampled_while_it_is_there(tmp_path: Path) -> None:
    requests, steps = queue_run(200)
    replicas = replica_table(
        {"pool": "prefill", "site": "edge", "ended": 20.0},
        {"pool": "decode", "requested": 3.0, "ready": 5.25},
        {"pool": "decode", "requested": 3.0, "ready": None},
    )
    text, written = text_of(run_of(requests, steps, replicas=replicas), tmp_path, interval=2.0)
    assert written.replicas == 2 and "kv_cache_usage_perc" in written.left_out
    times: dict[str, list[float]] = {}
    for (name, labels), points in series(text).items():
        if name == "vllm:num_requests_running":
            assert dict(labels)["pool"] in ("prefill", "decode") and dict(labels)["engine"] == "0"
            assert ("site" in dict(labels)) == (dict(labels)["pool"] == "prefill")
            times[dict(labels)["instance"]] = [round(time - EPOCH, 3) for time, _ in points]
    assert times["replica-0"] == [2.0 * k for k in range(11)]
    assert times["replica-1"][:2] == [6.0, 8.0]
    assert times["replica-1"][-1] >= requests["finish"].max()  # type: ignore[operator]


def test_what_a_run_cannot_tell_is_left_out(tmp_path: Path) -> None:
    """A server seen from outside: no schedule, no cache, no steps, no events."""
    requests, _ = queue_run(60)
    requests = requests.with_columns(
        first_scheduled=pl.lit(None, pl.Float64), queue=pl.lit(None, pl.Float64), cached_tokens=pl.lit(None, pl.Int64)
    )
    text, written = text_of(run_of(requests, has_events=False), tmp_path)
    told = {name.removeprefix("vllm:") for name in written.metrics}
    assert not told & written.left_out.keys()
    assert told >= {
        "request_success",
        "time_to_first_token_seconds",
        "generation_tokens",
        "inter_token_latency_seconds",
    }
    assert written.left_out.keys() >= {"num_requests_running", "prefix_cache_hits", "num_preemptions"}
    assert all(name not in text for name in ("num_requests_waiting", "request_queue_time", "iteration_tokens"))
    finished = requests.filter(pl.col("status") == "finished")
    totals = last_totals(text)
    assert totals["vllm:generation_tokens_total"] == finished["output_tokens"].sum()
    assert totals["vllm:time_to_first_token_seconds_sum"] == pytest.approx(finished["ttft"].sum())


def test_counts_have_buckets_up_to_the_longest_sequence(tmp_path: Path) -> None:
    requests, steps = queue_run(50)
    text, _ = text_of(run_of(requests, steps), tmp_path, longest=4096)
    edges = {dict(labels)["le"] for name, labels in series(text) if name == "vllm:request_prompt_tokens_bucket"}
    assert edges == {"1.0", "2.0", "5.0", "10.0", "20.0", "50.0", "100.0", "200.0", "500.0", "1000.0", "2000.0", "+Inf"}


def test_too_many_samples_are_refused(tmp_path: Path) -> None:
    requests, steps = queue_run(50)
    late = requests.with_columns(pl.col("finish") + 1e6)
    with pytest.raises(UserError, match="expected at most 20,000,000, so a longer interval"):
        text_of(run_of(late, steps), tmp_path, interval=0.001)


def test_a_replica_that_never_ran_a_step_holds_no_blocks(tmp_path: Path) -> None:
    blocks = {"kv_blocks": 250}
    idle = replica_table(blocks, blocks, {"requested": 1.0, "ready": 1.0, **blocks})
    text, written = text_of(replace(simulated(), replicas=idle), tmp_path)
    assert written.replicas == 3
    held = {dict(labels)["instance"]: points for (name, labels), points in series(text).items() if "kv_cache" in name}
    assert {value for _, value in held["replica-2"]} == {0.0} and max(value for _, value in held["replica-0"]) > 0.0
