"""The services whose spans a run's traces are made of: client, router and every replica's engine."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanLimits, Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, set_span_in_context

from sim.results.telemetry.span_ids import RunIds

# Stated, because the environment could say something else.
_LIMITS = SpanLimits(
    max_span_attributes=128, max_events=128, max_links=128, max_event_attributes=128, max_link_attributes=128
)
_NANOSECONDS = 1_000_000_000
Attributes = dict[str, Any]


class Tracers:
    """Makes spans of a run's seconds, and keeps them in the order in which they begin to be told."""

    def __init__(self, epoch: int) -> None:
        """`epoch`: the Unix time of the run's second 0, in seconds."""
        self.spans: list[Span] = []
        self._epoch = epoch * _NANOSECONDS
        self._ids = RunIds()
        self._tracers: dict[str, Tracer] = {}

    def begin_trace(self, trace: int) -> None:
        self._ids.trace = trace

    def instant(self, moment: float) -> int:
        """Nanoseconds since 1970; the order of moments is kept."""
        return self._epoch + round(moment * _NANOSECONDS)

    def service(self, name: str, resource: Attributes) -> None:
        """A service of that name and resource may have spans from now on."""
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource(resource),
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=_LIMITS,
        )
        tracer = provider.get_tracer("simctl", version("simctl"))
        assert isinstance(tracer, Tracer)
        self._tracers[name] = tracer

    def span(
        self,
        service: str,
        name: str,
        begin: float,
        end: float,
        *,
        parent: Span | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes | None = None,
        events: list[tuple[str, float, Attributes]] | None = None,
        links: list[Link] | None = None,
        error: str | None = None,
    ) -> Span:
        """One span; `begin`, `end` and the events' moments are seconds of the run. `error` says what went wrong."""
        span = self._tracers[service].start_span(
            name,
            context=Context() if parent is None else set_span_in_context(parent, Context()),
            kind=kind,
            attributes=attributes or {},
            links=links or [],
            start_time=self.instant(begin),
        )
        assert isinstance(span, Span)
        for text, moment, about in events or []:
            span.add_event(text, about, timestamp=self.instant(min(max(moment, begin), end)))
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(self.instant(end))
        self.spans.append(span)
        return span
