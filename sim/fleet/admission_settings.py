"""What is set on the door of a fleet: which requests are turned away before they reach a replica."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ground.spec import Spec


class MaxOutstandingSettings(Spec):
    """Envoy's circuit breaker `max_requests`; per replica, the capacity of llm-d's concurrency detector."""

    policy: Literal["max_outstanding"]
    per_replica: PositiveInt | None = Field(
        default=None, description="requests in the fleet, times its replicas that are ready"
    )
    fleet: PositiveInt | None = Field(default=None, description="requests in the fleet")

    @model_validator(mode="after")
    def _one_is_given(self) -> MaxOutstandingSettings:
        if self.per_replica is None and self.fleet is None:
            raise ValueError("neither per_replica nor fleet is given; expected at least one of them")
        return self


class QueueLimitSettings(Spec):
    policy: Literal["queue_limit"]
    waiting: PositiveInt = Field(
        description="requests, in the engines' queues or for want of a replica; while as many wait nobody comes in"
    )


class TokenBucketSettings(Spec):
    policy: Literal["token_bucket"]
    counts: Literal["requests", "tokens"] = Field(
        default="requests", description="what the bucket counts; tokens are those of a prompt and its output"
    )
    rate: PositiveFloat = Field(le=1e15, description="of them a second, in the long run")
    burst: PositiveFloat = Field(le=1e18, description="of them at once, at most; the bucket is full at the beginning")


class KvUseSettings(Spec):
    policy: Literal["kv_use"]
    threshold: float = Field(
        default=0.95, gt=0, le=1, description="mean share of KV blocks held, from which on requests are turned away"
    )


class ShedLevel(Spec):
    below_priority: int = Field(description="requests of a lower priority than this are shed")
    saturation: PositiveFloat = Field(description="from so much on")


class PriorityShedSettings(Spec):
    """Defaults: those of the Gateway API Inference Extension's saturation detectors, and that what has a negative
    priority is sheddable."""

    policy: Literal["priority"]
    levels: tuple[ShedLevel, ...] = Field(
        default=(ShedLevel(below_priority=0, saturation=1.0),),
        min_length=1,
        description="least urgent first; the more saturated the fleet, the more urgent the requests that are shed",
    )
    saturation: Literal["utilization", "concurrency"] = Field(
        default="utilization",
        description="mean over the replicas of the larger of queue / queue_depth and KV use / kv_use; or requests in "
        "the fleet / (max_concurrency x replicas)",
    )
    queue_depth: PositiveInt = Field(default=5, description="waiting requests of a saturated replica")
    kv_use: float = Field(default=0.8, gt=0, le=1, description="share of KV blocks held on a saturated replica")
    max_concurrency: PositiveInt = Field(default=100, description="requests of a saturated replica")

    @model_validator(mode="after")
    def _levels_rise(self) -> PriorityShedSettings:
        for lower, upper in zip(self.levels, self.levels[1:], strict=False):
            if not (lower.below_priority < upper.below_priority and lower.saturation < upper.saturation):
                raise ValueError(
                    f"a level below priority {upper.below_priority} at {upper.saturation:g} follows one below "
                    f"{lower.below_priority} at {lower.saturation:g}; expected both to rise"
                )
        return self


AdmissionSettings = Annotated[
    MaxOutstandingSettings | QueueLimitSettings | TokenBucketSettings | KvUseSettings | PriorityShedSettings,
    Field(discriminator="policy"),
]
