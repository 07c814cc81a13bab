"""What is set on sites far apart, and on where requests are sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from ground.assumption import Assumption
from ground.errors import UserError
from ground.spec import Spec
from sim.fleet.placement import PLACEMENTS
from sim.fleet.pool_settings import PoolSettings

_KEY = "fleet.placement"


class SiteSettings(PoolSettings):
    model: str | None = Field(default=None, description="the model that is served here; the scenario's if not given")
    rtt: float = Field(default=0.0, ge=0, le=1e4, description="seconds from clients to the site and back")
    up: float | None = Field(default=None, gt=0, description="bytes/s that all requests share; no limit if not given")
    down: float | None = Field(default=None, gt=0, description="bytes/s of an answer; no limit if not given")
    capacity: int | None = Field(
        default=None, gt=0, description="requests at once that it is meant for; the seats of its engines if not given"
    )


class ClassSettings(Spec):
    """Of the requests whose `slo_class` it is."""

    deadline: float | None = Field(
        default=None, gt=0, description="seconds within which a client wants the whole answer; the trace's if not given"
    )
    site: str | None = Field(default=None, description="where policy fixed sends it; the first site if not given")
    request_bytes: int = Field(default=0, ge=0, description="of a request beside its text, such as an image")
    expected_output: int = Field(
        default=100, gt=0, description="output tokens that a policy reckons with until one such request has ended"
    )


class PlacementSettings(Spec):
    policy: str = Field(default="fixed", description=f"one of {', '.join(PLACEMENTS)}")
    classes: dict[str, ClassSettings] = Field(default={}, description="slo_class → what is wanted and known of it")
    threshold: float = Field(
        default=0.8, gt=0, description="share of a site's capacity that policy load_aware fills before the next site"
    )
    margin: float = Field(
        default=1.0, gt=0, description="times as much as predicted must fit into a deadline, for a site to keep it"
    )
    prefer: Literal["nearest", "farthest"] = Field(
        default="nearest", description="which of the sites that keep a deadline policy deadline_aware takes"
    )
    prompt_token_bytes: float = Field(default=4.0, ge=0, description="bytes of a prompt token as text")
    output_token_bytes: float = Field(default=220.0, ge=0, description="bytes of an output token as it is sent")
    stream: bool = Field(default=True, description="tokens are sent as they come; else the whole answer at its end")

    @model_validator(mode="after")
    def _known_policy(self) -> PlacementSettings:
        if self.policy not in PLACEMENTS:
            raise ValueError(f"unknown policy {self.policy!r}, expected one of {', '.join(PLACEMENTS)}")
        return self

    def check(self, sites: Mapping[str, SiteSettings], classes: set[str], priced: bool) -> None:
        """Raises UserError: a class names no site, no request is of a class, or a price is missing."""
        for name, each in self.classes.items():
            if each.site is not None and each.site not in sites:
                expected = ", ".join(sites)
                raise UserError(f"{_KEY}.classes.{name}.site is {each.site!r}; expected one of {expected}")
            if name not in classes:
                found = ", ".join(sorted(classes)) or "none"
                raise UserError(f"{_KEY}.classes: no request is of class {name!r}; the trace has {found}")
        if self.policy == "cost_aware" and not priced:
            raise UserError(f"{_KEY}.policy is cost_aware and a site has no gpu_hour_price; expected one for each")

    def assumptions(self) -> list[Assumption]:
        def term(name: str, unit: str, note: str) -> Assumption:
            source = "user" if name in self.model_fields_set else "assumed"
            return Assumption(f"{_KEY}.{name}", getattr(self, name), unit, source, note)  # type: ignore[arg-type]

        return [
            term("prompt_token_bytes", "bytes", "English text has about four characters a token"),
            term("output_token_bytes", "bytes", "an event of a streamed completion with one token, as JSON"),
            term("stream", "", "answers share nothing on the way down"),
        ]
