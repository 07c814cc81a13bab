"""A run's spans: they nest, their phases sum to the latency, and the file is what OTLP/JSON demands."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from run_tables import queue_run, request_tables
from telemetry_runs import run_of, simulated

from sim.results.folder import Run
from sim.results.tables import EVENTS
from sim.results.telemetry.span_ids import request_trace, sampled
from sim.results.telemetry.traces import WrittenTraces, write_traces

EPOCH = 1_767_225_600
PRESETS = ("vllm-0.11", "vllm-0.19")
Span = dict[str, Any]


def traced(
    run: Run, folder: Path, *, share: float = 1.0, slowest: int = 0, most_steps: int = 50, seed: int = 0
) -> tuple[list[Span], WrittenTraces]:
    """All spans of the file, each with `service` and its attributes as a dictionary."""
    path = folder / "traces.json"
    written = write_traces(run, path, epoch=EPOCH, share=share, slowest=slowest, most_steps=most_steps, seed=seed)
    spans = []
    for line in path.read_text(encoding="utf-8").splitlines():
        request = json.loads(line)
        ParseDict(request, ExportTraceServiceRequest())  # every field and enumeration is known
        for resource in request["resourceSpans"]:
            about = attributes(resource["resource"])
            for scope in resource["scopeSpans"]:
                spans += [
                    span
                    | {"service": about.get("service.instance.id", about["service.name"]), "about": attributes(span)}
                    for span in scope["spans"]
                ]
    assert len(spans) == written.spans
    return spans, written


def attributes(owner: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for entry in owner.get("attributes", []):
        ((kind, value),) = entry["value"].items()
        found[entry["key"]] = int(value) if kind == "intValue" else value
    return found


def begin(span: Span) -> int:
    return int(span["startTimeUnixNano"])


def end(span: Span) -> int:
    return int(span["endTimeUnixNano"])


def check_tree(spans: list[Span]) -> dict[str, list[Span]]:
    """Ids are hexadecimal and unique, every parent is there, and holds its children; returns children by parent."""
    by_id = {span["spanId"]: span for span in spans}
    assert len(by_id) == len(spans)
    children = defaultdict(list)
    for span in spans:
        assert len(bytes.fromhex(span["traceId"])) == 16 and len(bytes.fromhex(span["spanId"])) == 8
        assert begin(span) <= end(span) and begin(span) >= EPOCH * 10**9
        parent = by_id.get(span.get("parentSpanId", ""))
        if "parentSpanId" in span:
            assert parent is not None and parent["traceId"] == span["traceId"]
            assert begin(parent) <= begin(span) <= end(span) <= end(parent), span["name"]
            children[parent["spanId"]].append(span)
        for event in span.get("events", []):
            assert begin(span) <= int(event["timeUnixNano"]) <= end(span)
        for link in span.get("links", []):
            assert by_id[link["spanId"]]["traceId"] == link["traceId"]
    roots = [span for span in spans if "parentSpanId" not in span]
    assert len({span["traceId"] for span in roots}) == len(roots)
    return children


@pytest.mark.parametrize("preset", PRESETS)
def test_spans_nest_and_phases_sum_to_the_latency(preset: str, tmp_path: Path) -> None:
    run = simulated(preset)
    spans, written = traced(run, tmp_path)
    children = check_tree(spans)
    rows = {str(row["request_id"]): row for row in run.requests.iter_rows(named=True)}
    assert written.requests == written.of_requests == len(rows)
    preempted = 0
    served = [span for span in spans if span["name"] == "llm_request"]
    assert len(served) == run.metrics["requests"]["finished"]
    for span in served:
        row = rows[span["about"]["gen_ai.request.id"]]
        assert span["service"] == f"replica-{row['replica']}"
        assert (end(span) - begin(span)) / 1e9 == pytest.approx(row["e2e"], abs=2e-9)
        phases = sorted((child for child in children[span["spanId"]]), key=begin)
        assert sum(end(phase) - begin(phase) for phase in phases) == end(span) - begin(span)
        assert all(end(a) == begin(b) for a, b in pairwise(phases))
        seconds = defaultdict(float)
        for phase in phases:
            seconds[phase["name"]] += (end(phase) - begin(phase)) / 1e9
        assert seconds.keys() <= {"queue", "prefill", "decode", "preempted"}
        assert seconds["queue"] == pytest.approx(row["queue"], abs=2e-9)
        about = span["about"]
        assert about["gen_ai.latency.e2e"] == row["e2e"]
        assert about["gen_ai.latency.time_to_first_token"] == row["ttft"]
        assert about["gen_ai.usage.completion_tokens"] == row["output_tokens"]
        kinds = [event["name"] for event in span.get("events", [])]
        assert kinds.count("preempted") == row["preemptions"] >= kinds.count("resumed")
        preempted += kinds.count("resumed")
        assert ("preempted" in seconds) == ("resumed" in kinds)
    assert preempted > 0, "the run must show one"


def test_a_request_goes_from_client_to_engine(tmp_path: Path) -> None:
    run = simulated()
    spans, _ = traced(run, tmp_path)
    by_id = {span["spanId"]: span for span in spans}
    span = next(span for span in spans if span["name"] == "llm_request")
    path = []
    while True:
        path.append((span["service"], span["kind"]))
        if "parentSpanId" not in span:
            break
        span = by_id[span["parentSpanId"]]
    replica = path[0][0]
    # Kinds as numbers: 2 server, 3 client (opentelemetry/proto/trace/v1/trace.proto).
    assert path == [(replica, 2), ("router", 3), ("router", 2), ("client", 3)]
    assert span["name"] == "text_completion Llama-3.1-8B"
    about = span["about"]
    assert about["gen_ai.operation.name"] == "text_completion" and about["gen_ai.provider.name"] == "vllm"
    row = run.requests.filter(pl.col("request_id") == int(about["gen_ai.request.id"])).row(0, named=True)
    assert about["gen_ai.usage.input_tokens"] == row["prompt_tokens"]
    assert about["gen_ai.usage.output_tokens"] == row["output_tokens"]


def test_steps_are_linked_to_the_requests_that_ran_in_them(tmp_path: Path) -> None:
    run = simulated()
    spans, written = traced(run, tmp_path, share=0.1, most_steps=40)
    check_tree(spans)
    by_id = {span["spanId"]: span for span in spans}
    steps = [span for span in spans if span["name"] == "step"]
    assert len(steps) == written.step_spans and 20 <= len(steps) <= 40 <= written.of_steps
    rows = {(row["replica"], EPOCH * 10**9 + round(row["start"] * 1e9)): row for row in run.steps.iter_rows(named=True)}
    for span in steps:
        row = rows[int(span["service"].removeprefix("replica-")), begin(span)]
        assert span["about"]["simctl.step.decode_seqs"] == row["decode_seqs"]
        assert span["links"]
        for link in span["links"]:
            request = by_id[link["spanId"]]
            assert request["service"] == span["service"] and request["name"] == "llm_request"
            assert begin(request) < end(span) and end(request) > begin(span)
    none, written = traced(run, tmp_path, most_steps=0)
    assert written.step_spans == 0 and all(span["name"] != "step" for span in none)


@given(st.integers(0, 5), st.floats(0, 1))
def test_a_share_of_requests_is_sampled_by_trace_id(seed: int, share: float) -> None:
    numbers = list(range(400))
    chosen = sampled(seed, numbers, share)
    assert abs(len(chosen) - 400 * share) < 60  # six standard deviations
    assert set(sampled(seed, numbers[:100], share)) == {number for number in chosen if number < 100}
    assert set(chosen) <= set(sampled(seed, numbers, min(1.0, share * 1.5)))
    assert len({request_trace(seed, number) for number in numbers}) == 400


def test_the_slowest_are_always_there_and_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    run = simulated()
    spans, written = traced(run, tmp_path, share=0.0, slowest=4)
    slow = run.requests.top_k(4, by="e2e")["request_id"]
    assert {span["about"]["gen_ai.request.id"] for span in spans if span["name"] == "llm_request"} == set(
        map(str, slow)
    )
    assert written.requests == 4
    first = (tmp_path / "traces.json").read_bytes()
    traced(run, tmp_path, share=0.0, slowest=4)
    assert (tmp_path / "traces.json").read_bytes() == first
    traced(run, tmp_path, share=0.0, slowest=4, seed=1)
    assert (tmp_path / "traces.json").read_bytes() != first


@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])
@given(request_tables())
def test_any_tables_of_requests(requests: pl.DataFrame) -> None:
    with TemporaryDirectory() as folder:
        spans, written = traced(run_of(requests), Path(folder))
    check_tree(spans)
    lost = [span for span in spans if span["service"] == "client" and "error.type" in span["about"]]
    assert written.requests == len(requests)
    assert sorted(span["about"]["error.type"] for span in lost) == sorted(
        status for status in requests["status"] if status != "finished"
    )
    assert all(span["status"]["code"] == 2 for span in lost)  # error


def test_events_that_take_time_are_spans_and_others_are_marks(tmp_path: Path) -> None:
    requests, _ = queue_run(60, rate=60.0)
    waits = requests.filter((pl.col("status") == "finished") & (pl.col("queue") > 0.01))
    assert len(waits) >= 4
    first, second, third, fourth = waits[:4].iter_rows(named=True)
    common = {"replica": 0, "amount": 7, "detail": "miss a"}
    events = [
        {"time": first["arrival"], "kind": "model_load", "request_id": first["request_id"], "seconds": 0.005} | common,
        {"time": second["arrival"], "kind": "retried", "request_id": second["request_id"], "seconds": None} | common,
        # Its time is when it was sent again.
        {"time": fourth["arrival"] + 0.004, "kind": "retried", "request_id": fourth["request_id"], "seconds": 0.004}
        | common,
        # It outlasts the phase in which it began, and the request too.
        {"time": third["arrival"], "kind": "hop", "request_id": third["request_id"], "seconds": 1e6} | common,
    ]
    run = replace(run_of(requests), events=pl.DataFrame(events, schema=EVENTS))
    spans, _ = traced(run, tmp_path)
    check_tree(spans)
    by_id = {span["spanId"]: span for span in spans}
    load = next(span for span in spans if span["name"] == "model_load")
    assert by_id[load["parentSpanId"]]["name"] == "queue"
    assert end(load) - begin(load) == 5_000_000 and load["about"]["simctl.detail"] == "miss a"
    hop = next(span for span in spans if span["name"] == "hop" and span["service"] != "router")
    assert by_id[hop["parentSpanId"]]["name"] == "llm_request" and end(hop) == end(by_id[hop["parentSpanId"]])
    retry = next(span for span in spans if span["name"] == "retried")
    assert by_id[retry["parentSpanId"]]["name"] == "queue" and begin(retry) == begin(by_id[retry["parentSpanId"]])
    assert end(retry) - begin(retry) == pytest.approx(4_000_000, abs=2)
    marks = {event["name"] for span in spans for event in span.get("events", [])}
    assert marks == {"retried"}
