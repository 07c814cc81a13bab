"""A link in a scenario: a kind by name, its figures, or a kind with one figure of one's own."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field, model_validator

from ground.assumption import Assumption
from ground.spec import Spec
from sim.fleet.links.kinds import LINK_KINDS


class LinkFigures(NamedTuple):
    """Bytes/s and seconds of one direction, and what was not given of them."""

    bandwidth: float
    latency: float
    assumptions: list[Assumption]


class LinkSettings(Spec):
    kind: str | None = Field(default=None, description="a named kind, whose published figures hold where none is given")
    bandwidth: float | None = Field(default=None, gt=0, le=1e18, description="bytes/s of one direction")
    latency: float | None = Field(default=None, ge=0, le=1e6, description="seconds; the kind's, or 0 without one")

    @model_validator(mode="after")
    def _known(self) -> LinkSettings:
        if self.kind is not None and self.kind not in LINK_KINDS:
            raise ValueError(f"unknown kind of link {self.kind!r}, expected one of {', '.join(LINK_KINDS)}")
        if self.kind is None and self.bandwidth is None:
            raise ValueError("neither kind nor bandwidth is given; expected one of them")
        return self

    def figures(self, key: str) -> LinkFigures:
        """`key` is where it stands in the scenario; it names the assumptions."""
        kind = None if self.kind is None else LINK_KINDS[self.kind]
        assumptions = []
        bandwidth, latency = self.bandwidth, self.latency
        if bandwidth is None:
            assert kind is not None
            bandwidth = kind.bandwidth
            assumptions.append(Assumption(f"{key}.bandwidth", bandwidth, "bytes/s", kind.source, kind.note))
        if latency is None:
            latency = 0.0 if kind is None else kind.latency
            source, note = ("assumed", "none given") if kind is None else (kind.source, kind.note)
            assumptions.append(Assumption(f"{key}.latency", latency, "s", source, note))  # type: ignore[arg-type]
        return LinkFigures(bandwidth, latency, assumptions)
