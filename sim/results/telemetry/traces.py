"""A run's sampled requests and their steps as OpenTelemetry spans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from opentelemetry.semconv._incubating.attributes import service_attributes as incubating
from opentelemetry.semconv.attributes import service_attributes as service

from sim.results.folder import Run
from sim.results.telemetry.openmetrics import replicas_of
from sim.results.telemetry.otlp import write_otlp
from sim.results.telemetry.request_spans import CLIENT, ROUTER, add_request_spans, engine_name, engine_service
from sim.results.telemetry.span_ids import sampled
from sim.results.telemetry.step_spans import add_step_spans
from sim.results.telemetry.tracers import Tracers


@dataclass(frozen=True)
class WrittenTraces:
    requests: int
    of_requests: int
    step_spans: int
    of_steps: int  # rows in which sampled requests ran
    spans: int


def write_traces(
    run: Run, path: Path, *, epoch: int, share: float, slowest: int, most_steps: int, seed: int
) -> WrittenTraces:
    """Write spans of a share of all requests, chosen by their trace ids, and of the slowest ones, to `path`.

    Args:
        epoch: the Unix time of the run's second 0, in seconds.
        slowest: how many of the finished requests with the longest E2E latency are always there.
        most_steps: how many spans of steps at most.
    """
    requests = _chosen(run.requests, share, slowest, seed)
    replicas = replicas_of(run)
    tracers = Tracers(epoch)
    engine, fleet = engine_name(run), {incubating.SERVICE_NAMESPACE: "simctl"}
    for name in (CLIENT, ROUTER):
        tracers.service(name, {service.SERVICE_NAME: name, **fleet})
    numbers = {row["replica"]: row for row in replicas}
    for number in sorted({*numbers, *requests["replica"].to_list()}):
        tracers.service(engine_service(number), _resource(engine, number, numbers.get(number, {}), fleet))
    engines = add_request_spans(run, requests, tracers, seed)
    with_steps = replicas if len(run.steps) else []
    written, there = add_step_spans(run, with_steps, engines, tracers, seed, most_steps)
    write_otlp(tracers.spans, path)
    return WrittenTraces(len(requests), len(run.requests), written, there, len(tracers.spans))


def _chosen(requests: pl.DataFrame, share: float, slowest: int, seed: int) -> pl.DataFrame:
    slow = requests.filter(pl.col("status") == "finished").top_k(slowest, by=["e2e", "request_id"])["request_id"]
    taken = {*sampled(seed, requests["request_id"].to_list(), share), *slow.to_list()}
    return requests.filter(pl.col("request_id").is_in(list(taken))).sort("request_id")


def _resource(engine: str, number: int, replica: dict[str, Any], fleet: dict[str, str]) -> dict[str, Any]:
    places = {f"simctl.{name}": replica[name] for name in ("pool", "site") if replica.get(name)}
    return {
        service.SERVICE_NAME: engine,
        incubating.SERVICE_INSTANCE_ID: engine_service(number),
        **fleet,
        **places,
    }
