"""Spans as OTLP/JSON: one ExportTraceServiceRequest a line, as the collector's file exporter writes."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

_SPANS_A_LINE = 256  # the collector's file receiver takes lines of up to 1 MiB
_IDS = ("traceId", "spanId", "parentSpanId")


def write_otlp(spans: Sequence[ReadableSpan], path: Path) -> None:
    """Equal spans give equal bytes."""
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(spans), _SPANS_A_LINE):
            request = export_request(spans[start : start + _SPANS_A_LINE])
            file.write(json.dumps(request, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n")


def export_request(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """As OTLP/JSON demands it, which is protobuf's JSON with ids in hexadecimal and enumerations as numbers
    (opentelemetry.io/docs/specs/otlp, JSON Protobuf Encoding)."""
    from google.protobuf.json_format import MessageToDict
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    request: dict[str, Any] = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for owner in (span, *span.get("links", [])):
                    owner.update({name: b64decode(owner[name]).hex() for name in _IDS if name in owner})
    return request
