"""What is set on the routers of a fleet: how late they know of the load, and each one's own options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ground.spec import Spec
from sim.fleet.replica_scores import SCORERS


class PrefixAwareSettings(Spec):
    """Defaults: the SGLang router's (`sgl-router`, `--cache-threshold`, `--balance-abs-threshold` and
    `--balance-rel-threshold`)."""

    match_threshold: float = Field(
        default=0.3, ge=0, le=1, description="share of a prompt that a match must cover more than to be followed"
    )
    balance_absolute: int = Field(
        default=64, ge=0, description="requests that the busiest replica must have more than the idlest, and also"
    )
    balance_relative: float = Field(
        default=1.5, ge=1, description="times as many as it, for the idlest to be chosen whatever matches"
    )


class KvCostSettings(Spec):
    """Defaults: those of Dynamo's KV router (ai-dynamo/dynamo, `lib/kv-router/src/scheduling/config.rs`)."""

    overlap_credit: float = Field(default=1.0, ge=0, le=1, description="of each cached block, off the prefill's cost")
    overlap_credit_decay: float = Field(
        default=0.0, ge=0, description="d: the credit is divided by 1 + d times the replica's excess prefill load"
    )
    prefill_load_scale: float = Field(default=1.0, ge=0, description="cost of a block to prefill, in decoding blocks")
    active_request_weight: float = Field(default=0.0, ge=0, description="cost of a request that is there, in blocks")
    temperature: float = Field(
        default=0.0, ge=0, description="of a draw by cost, of which 1 is the whole spread; 0 is the least cost"
    )


class ScorersSettings(Spec):
    """Weights: llm-d's for its inference scheduling guide; threshold: its load-aware scorer's."""

    weights: dict[str, PositiveFloat] = Field(
        default={"prefix": 3.0, "queue": 2.0, "kv": 2.0},
        min_length=1,
        description=f"scorer → its weight in the sum; scorers are {', '.join(SCORERS)}",
    )
    load_threshold: PositiveInt = Field(
        default=128, description="waiting requests at which the scorer load_aware gives nothing"
    )

    @model_validator(mode="after")
    def _known_scorers(self) -> ScorersSettings:
        for name in self.weights:
            if name not in SCORERS:
                raise ValueError(f"unknown scorer {name!r}, expected one of {', '.join(SCORERS)}")
        return self


class SessionAffinitySettings(Spec):
    points: PositiveInt = Field(default=160, le=10_000, description="places of each replica on the ring of hashes")
    balance_factor: Annotated[float, Field(ge=1)] | Literal["unlimited"] = Field(
        default=1.25,
        description="a replica takes at most so many times the mean of outstanding requests, and the next one on the "
        "ring what is more",
    )


class SloTier(Spec):
    min_priority: int | None = Field(
        default=None, description="requests of at least this priority are of this tier; the last tier takes the rest"
    )
    share: float = Field(gt=0, le=1, description="of the replicas")


class SloTiersSettings(Spec):
    tiers: tuple[SloTier, ...] = Field(
        default=(SloTier(min_priority=1, share=0.25), SloTier(share=0.75)),
        min_length=1,
        description="most urgent first; each has replicas of its own, at least one while there are enough",
    )
    spill: PositiveInt | None = Field(
        default=None,
        description="outstanding requests on each of a tier's replicas from which on its requests also go to the "
        "replicas of less urgent tiers; never if not given",
    )

    @model_validator(mode="after")
    def _tiers_fit(self) -> SloTiersSettings:
        bounds = [tier.min_priority for tier in self.tiers]
        if bounds[-1] is not None:
            raise ValueError(f"the last tier has min_priority {bounds[-1]}; expected none, so that it takes the rest")
        given = [bound for bound in bounds[:-1] if bound is not None]
        if len(given) < len(bounds) - 1 or given != sorted(set(given), reverse=True):
            raise ValueError(f"the tiers' min_priority are {bounds}; expected falling numbers, and none for the last")
        total = sum(tier.share for tier in self.tiers)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the tiers' shares add up to {total:g}; expected 1")
        return self


class RoutingSettings(Spec):
    load_delay: float = Field(
        default=0.0, ge=0, le=1e6, description="seconds until a router knows that a request was sent or has ended"
    )
    scrape_interval: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="seconds between scrapes of the engines' own metrics, for those who ask them; 0: never late",
    )
    prefix_aware: PrefixAwareSettings | None = None
    kv_cost: KvCostSettings | None = None
    scorers: ScorersSettings | None = None
    session_affinity: SessionAffinitySettings | None = None
    slo_tiers: SloTiersSettings | None = None

    @model_validator(mode="after")
    def _scrapes_are_few(self) -> RoutingSettings:
        if 0 < self.scrape_interval < 1e-3:
            raise ValueError(f"scrape_interval is {self.scrape_interval}; expected 0 or at least 0.001 seconds")
        return self


def with_options_of(router: str, routing: Any) -> Any:
    """What was given as `routing`, where the options of the router that is used are there with their defaults."""
    if router in RoutingSettings.model_fields and isinstance(routing, dict) and routing.get(router) is None:
        return {**routing, router: {}}
    return routing
