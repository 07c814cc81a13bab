"""The service-level objective: what latency a request may have, and what share of requests must keep to it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Slo(BaseModel):
    """Limits of one request, each in seconds and optional, and the share of all requests that must meet them.

    A request meets the SLO if it finished and none of its latencies exceeds its limit. A request of one output token
    has no TPOT and so cannot exceed that limit. With no limit given, every finished request meets the SLO.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft: Seconds | None = None
    tpot: Seconds | None = None
    e2e: Seconds | None = None
    attainment: Annotated[float, Field(gt=0, le=1)] = 0.99

    @property
    def limits(self) -> dict[str, float]:
        """The limits that were given: latency name → seconds."""
        given = {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e}
        return {name: limit for name, limit in given.items() if limit is not None}
