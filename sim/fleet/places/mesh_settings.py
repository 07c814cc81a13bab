"""What is set on a service mesh between clients and the service, and where its figures are from."""

from __future__ import annotations

from math import exp, log

from pydantic import Field, model_validator

from ground.assumption import Assumption, Source
from ground.spec import Spec

_KEY = "fleet.mesh"
_Z90, _Z99 = 1.2815515655446004, 2.3263478740408408  # quantiles of the normal distribution
_HANDSHAKE = (
    "measured: mutual TLS 1.3, ECDSA P-256 certificates, OpenSSL 3.0, both sides one after the other in memory on one "
    "core of an AMD EPYC, the least of 400"
)
_ISTIO = (
    "Istio, Performance and Scalability (Istio 1.12): what the proxies of client and server add to the latency of an "
    "HTTP/1.1 request of 1 kB, at 1,000 requests/s over 16 connections with mutual TLS and jitter"
)


# Where a default is from, if it is not taken.
_SOURCES: dict[str, Source] = {"latency": "imported", "handshake_seconds": "measured"}


class ProxyLatency(Spec):
    """Seconds that all proxies on the way add to a request and its answer: log-normal through two percentiles, or
    constant where they are equal."""

    p90: float = Field(default=0.0017, gt=0, le=60)
    p99: float = Field(default=0.00269, gt=0, le=60)

    @model_validator(mode="after")
    def _ordered(self) -> ProxyLatency:
        if self.p99 < self.p90:
            raise ValueError(f"p99 is {self.p99}; expected at least p90 ({self.p90})")
        return self

    @property
    def sigma(self) -> float:
        return log(self.p99 / self.p90) / (_Z99 - _Z90)

    @property
    def median(self) -> float:
        return self.p90 * exp(-_Z90 * self.sigma)


class MeshSettings(Spec):
    latency: ProxyLatency = ProxyLatency()
    round_trip: float = Field(default=0.0005, ge=0, le=60, description="seconds between the proxies and back")
    handshake_round_trips: int = Field(default=2, ge=0, description="of a new connection: TCP's one and TLS 1.3's one")
    handshake_seconds: float = Field(
        default=0.0024, ge=0, le=60, description="of computing in a mutual TLS handshake, both proxies together"
    )
    multiplexed: bool = Field(
        default=False, description="a connection carries any number of requests at once (HTTP/2), not one (HTTP/1.1)"
    )
    idle_timeout: float = Field(default=3600.0, gt=0, description="seconds until an idle connection is closed")
    max_requests_per_connection: int | None = Field(
        default=None, gt=0, description="after which a connection is closed; any number if not given"
    )

    @property
    def handshake(self) -> float:
        """Seconds until a new connection carries a request."""
        return self.handshake_round_trips * self.round_trip + self.handshake_seconds

    def assumptions(self) -> list[Assumption]:
        def term(name: str, value: float | int | str, unit: str, note: str) -> Assumption:
            key = name.split(".")[0]
            source = "user" if key in self.model_fields_set else _SOURCES.get(key, "assumed")
            return Assumption(f"{_KEY}.{name}", value, unit, source, note)

        return [
            term("latency.p90", self.latency.p90, "s", f"{_ISTIO}; half of it each way"),
            term("latency.p99", self.latency.p99, "s", "the same; log-normal through both"),
            term("round_trip", self.round_trip, "s", "between two nodes of a cluster; no measurement of one's own"),
            term("handshake_round_trips", self.handshake_round_trips, "", "RFC 9293 (TCP) and RFC 8446 (TLS 1.3)"),
            term("handshake_seconds", self.handshake_seconds, "s", _HANDSHAKE),
            term("idle_timeout", self.idle_timeout, "s", "Envoy, HttpProtocolOptions.idle_timeout: 1 h by default"),
            Assumption(f"{_KEY}.retries", 0, "", "assumed", "none of the mesh's own: those of fleet.clients"),
        ]
