"""One request as a trace: client → router → hop → engine → its phases, and what happened meanwhile."""

from __future__ import annotations

from typing import Any

import polars as pl
from opentelemetry.sdk.trace import Span
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.attributes import server_attributes as server
from opentelemetry.semconv.attributes import error_attributes as error
from opentelemetry.trace import SpanKind

from sim.results.diagnosis.attribution import preempted_intervals
from sim.results.diagnosis.timeline import phases
from sim.results.folder import Run
from sim.results.telemetry.openmetrics import model_name
from sim.results.telemetry.span_ids import request_trace
from sim.results.telemetry.tracers import Attributes, Tracers

CLIENT, ROUTER = "client", "router"
_OPERATION = gen_ai.GenAiOperationNameValues.TEXT_COMPLETION.value
_PHASES = {"queueing": "queue"}  # what operators call it
_AT_THE_END = frozenset({"retried", "timed_out"})  # events whose time is when their seconds were over
Row = dict[str, Any]


def add_request_spans(run: Run, requests: pl.DataFrame, tracers: Tracers, seed: int) -> dict[int, Span]:
    """The spans of these requests, in their order; returns the engine's span of each that finished, by request_id.

    Every event of a request that took no time is an event of a span; one that took time is a span below the phase in
    which it began. A request that did not finish has what is known of it: it ends with its last event.
    """
    finished = requests.filter(pl.col("status") == "finished")
    owner, lost, again = preempted_intervals(finished, run.events)
    away: dict[int, list[tuple[float, float]]] = {}
    numbers = finished["request_id"].to_list()
    for row, begin, end in sorted(zip(owner.tolist(), lost.tolist(), again.tolist(), strict=True)):
        away.setdefault(numbers[row], []).append((begin, end))
    events = _by_request(run.events, requests)
    engines = {}
    for row in requests.iter_rows(named=True):
        number = row["request_id"]
        tracers.begin_trace(request_trace(seed, number))
        own = events.get(number, [])
        if row["status"] == "finished":
            engines[number] = _finished(run, row, own, away.get(number, []), tracers)
        elif row["arrival"] is not None:
            _lost(run, row, own, tracers)
    return engines


def _by_request(events: pl.DataFrame, requests: pl.DataFrame) -> dict[int, list[Row]]:
    own = events.join(requests.select("request_id"), on="request_id", how="semi").sort("time", maintain_order=True)
    found: dict[int, list[Row]] = {}
    for row in own.iter_rows(named=True):
        found.setdefault(row["request_id"], []).append(row)
    return found


def _finished(run: Run, row: Row, events: list[Row], away: list[tuple[float, float]], tracers: Tracers) -> Span:
    begin, end = row["arrival"], row["finish"]
    asked = _asked(run, row)
    answered = {
        gen_ai.GEN_AI_RESPONSE_MODEL: _model(run, row),
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: ("length",),
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: row["prompt_tokens"],
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: row["output_tokens"],
        gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: row["cached_tokens"],
        gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: row["ttft"],
    }
    about = asked | _known(answered)
    client = tracers.span(CLIENT, _name(run, row), begin, end, kind=SpanKind.CLIENT, attributes=about)
    route = tracers.span(
        ROUTER, "route", begin, end, parent=client, kind=SpanKind.SERVER, attributes=_routing(run, row)
    )
    engine = engine_service(row["replica"])
    hop = tracers.span(
        ROUTER, "hop", begin, end, parent=route, kind=SpanKind.CLIENT, attributes={server.SERVER_ADDRESS: engine}
    )
    happened = [event for event in events if not event["seconds"]]
    served = tracers.span(
        engine,
        "llm_request",
        begin,
        end,
        parent=hop,
        kind=SpanKind.SERVER,
        attributes=_known(_vllm_attributes(run, row)),
        events=[(event["kind"], event["time"], _about(event)) for event in happened],
    )
    spans = [
        (tracers.span(engine, _PHASES.get(phase, phase), since, until, parent=served), since, until)
        for phase, since, until in phases(row, away)
    ]
    for event in events:
        if event["seconds"]:
            _took_time(event, served, (begin, end), spans, engine, tracers)
    return served


def _took_time(
    event: Row,
    served: Span,
    whole: tuple[float, float],
    phases: list[tuple[Span, float, float]],
    engine: str,
    tracers: Tracers,
) -> None:
    """Below the phase in which it began if it also ended there, else below the request."""
    since, until = _interval(event)
    begin, end = max(since, whole[0]), min(until, whole[1])
    if begin > end:
        return
    parent = next((span for span, since, until in phases if since <= begin < until and end <= until), served)
    tracers.span(engine, event["kind"], begin, end, parent=parent, attributes=_about(event))


def _interval(event: Row) -> tuple[float, float]:
    seconds = event["seconds"] or 0.0
    begin = event["time"] - seconds if event["kind"] in _AT_THE_END else event["time"]
    return begin, begin + seconds


def _lost(run: Run, row: Row, events: list[Row], tracers: Tracers) -> None:
    """Of a request that was turned away, given up or never finished."""
    begin = row["arrival"]
    known = [begin, row["first_scheduled"], row["first_token"]]
    known += [_interval(event)[1] for event in events]
    end = max(moment for moment in known if moment is not None)
    status = row["status"]
    happened = [(event["kind"], event["time"], _about(event)) for event in events]
    about = _asked(run, row) | {error.ERROR_TYPE: status}
    client = tracers.span(
        CLIENT, _name(run, row), begin, end, kind=SpanKind.CLIENT, attributes=about, events=happened, error=status
    )
    tracers.span(
        ROUTER,
        "route",
        begin,
        end,
        parent=client,
        kind=SpanKind.SERVER,
        attributes=_routing(run, row) | {error.ERROR_TYPE: status},
        error=status,
    )


def _model(run: Run, row: Row) -> str:
    return model_name(run, row.get("site"))


def _name(run: Run, row: Row) -> str:
    """Of the client's span."""
    return f"{_OPERATION} {_model(run, row)}"


def _asked(run: Run, row: Row) -> Attributes:
    return {
        gen_ai.GEN_AI_OPERATION_NAME: _OPERATION,
        gen_ai.GEN_AI_PROVIDER_NAME: engine_name(run),
        gen_ai.GEN_AI_REQUEST_MODEL: _model(run, row),
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: row["output_tokens"],
        gen_ai.GEN_AI_REQUEST_STREAM: True,
        "gen_ai.request.id": str(row["request_id"]),
    }


def _vllm_attributes(run: Run, row: Row) -> Attributes:
    """What vLLM's own span of a request says (`vllm/tracing.py`, class SpanAttributes)."""

    def between(since: str, until: str) -> float | None:
        return None if row[since] is None or row[until] is None else row[until] - row[since]

    return {
        gen_ai.GEN_AI_RESPONSE_MODEL: _model(run, row),
        "gen_ai.request.id": str(row["request_id"]),
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: row["output_tokens"],
        gen_ai.GEN_AI_USAGE_PROMPT_TOKENS: row["prompt_tokens"],
        gen_ai.GEN_AI_USAGE_COMPLETION_TOKENS: row["output_tokens"],
        "gen_ai.latency.time_in_queue": row["queue"],
        "gen_ai.latency.time_to_first_token": row["ttft"],
        "gen_ai.latency.e2e": row["e2e"],
        "gen_ai.latency.time_in_model_prefill": between("first_scheduled", "first_token"),
        "gen_ai.latency.time_in_model_decode": between("first_token", "finish"),
        "gen_ai.latency.time_in_model_inference": between("first_scheduled", "finish"),
    }


def _routing(run: Run, row: Row) -> Attributes:
    router = run.scenario.get("fleet", {}).get("router")
    return _known({"simctl.router": router, "simctl.replica": row["replica"] if row["replica"] >= 0 else None})


def _about(event: Row) -> Attributes:
    return _known({f"simctl.{name}": event[name] for name in ("seconds", "amount", "detail")})


def _known(attributes: Attributes) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def engine_name(run: Run) -> str:
    """The engine that the preset is of, without its version."""
    preset = str(run.scenario.get("engine", {}).get("preset", "unknown"))
    name, _, number = preset.rpartition("-")
    return name if number[:1].isdigit() else preset


def engine_service(replica: int) -> str:
    """-1 is a server of which nobody knows how many replicas it has."""
    return f"replica-{replica}" if replica >= 0 else "engine"
