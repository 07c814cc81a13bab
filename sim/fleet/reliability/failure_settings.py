"""What fails in a fleet, when, and how long: by a script, and at random."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ground.spec import Spec
from sim.fleet.duration import Duration

Kind = Literal["crash", "slow", "link"]


class _Failure(Spec):
    kind: Kind
    factor: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="slow: steps take so many times as long; link: the share of its bandwidth that a link keeps",
    )
    link: str | None = Field(default=None, description="name of the link that is degraded")
    pool: str | None = Field(default=None, description="name of the pool whose replicas fail; all if not given")

    @model_validator(mode="after")
    def _factor_fits(self) -> _Failure:
        if self.kind == "crash" and self.factor is not None:
            raise ValueError(f"kind is crash and factor is {self.factor:g}; expected none")
        if self.kind == "slow" and (self.factor is None or self.factor < 1):
            raise ValueError(f"kind is slow and factor is {self.factor}; expected 1 or more")
        if self.kind == "link" and (self.factor is None or self.factor > 1):
            raise ValueError(f"kind is link and factor is {self.factor}; expected 0 to 1")
        if (self.kind == "link") != (self.link is not None):
            raise ValueError(
                f"kind is {self.kind} and link is {self.link}; expected the name of a link where one fails"
            )
        return self


class ScriptedFailure(_Failure):
    at: float = Field(ge=0, description="seconds on the run's clock")
    replica: int | Literal["any"] = Field(
        default="any", description="its place among the replicas that serve then, 0 the first; or any of them, drawn"
    )
    duration: float | None = Field(
        default=None, gt=0, description="seconds until a node or link is whole again; for good if not given"
    )

    @model_validator(mode="after")
    def _duration_fits(self) -> ScriptedFailure:
        if self.kind == "crash" and self.duration is not None:
            raise ValueError("kind is crash and duration is given; expected restart_seconds of fleet.failures")
        if isinstance(self.replica, int) and self.replica < 0:
            raise ValueError(f"replica is {self.replica}; expected a place, 0 or more, or any")
        return self


class RandomFailures(_Failure):
    """Each replica (or link) fails by itself, at exponential times."""

    mtbf: float = Field(gt=0, description="mean seconds between failures of one replica, or of the link")
    duration: Duration | None = Field(
        default=None, description="seconds until a node or link is whole again, the same or drawn"
    )

    @model_validator(mode="after")
    def _duration_fits(self) -> RandomFailures:
        if (self.kind == "crash") != (self.duration is None):
            expected = "none" if self.kind == "crash" else "the seconds until it is whole again"
            raise ValueError(f"kind is {self.kind} and duration is {self.duration}; expected {expected}")
        return self


class FailureSettings(Spec):
    script: tuple[ScriptedFailure, ...] = Field(default=(), description="failures at given instants")
    random: tuple[RandomFailures, ...] = Field(default=(), description="failures drawn from seeded streams")
    restart_seconds: Duration | None = Field(
        default=None,
        description="from a crash until a replica serves in its place, the same or drawn; as fleet.cold_start says if "
        "not given",
    )
    restarts: bool = Field(default=True, description="whether a replica is started in place of one that crashed")
    failover: Literal["none", "before_first_token", "all"] = Field(
        default="none",
        description="which requests of a crashed replica the router sends to another one, where they begin anew",
    )
    failover_limit: int | None = Field(
        default=None, gt=0, description="how often, for one request; 3 times if not given, where there is failover"
    )

    @model_validator(mode="before")
    @classmethod
    def _spell_out_limit(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("failover", "none") == "none":
            return given
        return given if given.get("failover_limit") is not None else {**given, "failover_limit": 3}

    @property
    def crashes(self) -> bool:
        return any(failure.kind == "crash" for failure in (*self.script, *self.random))

    @model_validator(mode="after")
    def _something_fails(self) -> FailureSettings:
        if not self.script and not self.random:
            raise ValueError("nothing is given that fails; expected script or random")
        return self

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> FailureSettings:
        if not self.restarts and self.restart_seconds is not None:
            raise ValueError("restarts is false and restart_seconds is given; expected none, since nobody restarts")
        if self.failover == "none" and self.failover_limit is not None:
            raise ValueError(f"failover is none and failover_limit is {self.failover_limit}; expected no limit")
        return self
