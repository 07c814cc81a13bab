"""Ids of traces and spans that depend on the seed and on what they are of: equal runs give equal files, and the same
requests are sampled in runs that differ in anything else."""

from __future__ import annotations

from hashlib import blake2b

from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased


def trace_id(seed: int, what: str) -> int:
    """128 bits, as good as random."""
    return _bits(f"{seed} {what}", 16)


def sampled(seed: int, requests: list[int], share: float) -> list[int]:
    """Those of the request ids whose trace OpenTelemetry's own sampler takes at that share, from 0 to 1."""
    sampler = TraceIdRatioBased(share)
    return [
        number
        for number in requests
        if sampler.should_sample(None, request_trace(seed, number), "").decision.is_sampled()
    ]


def request_trace(seed: int, request_id: int) -> int:
    return trace_id(seed, f"request {request_id}")


class RunIds(IdGenerator):
    """Gives the ids of one trace after the other; `trace` says of which."""

    def __init__(self) -> None:
        self.trace = 0
        self._spans = 0

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        self._spans += 1
        return _bits(f"{self.trace} {self._spans}", 8)


def _bits(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest(), "big") or 1  # 0 means none
