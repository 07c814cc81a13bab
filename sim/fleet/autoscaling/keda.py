"""KEDA: from zero and to zero by activity, in between a Horizontal Pod Autoscaler on external metrics.

The rules are those of `pkg/scaling/executor/scale_scaledobjects.go` and of the Prometheus scaler (a trigger is active
above its activation threshold), the defaults those of the ScaledObject specification (keda.sh). A trigger on what is
held or has not ended is pushed, as by KEDA's HTTP add-on; all others are polled.
"""

from __future__ import annotations

from math import inf
from typing import Literal

from pydantic import Field, model_validator

from ground.spec import Spec
from sim.fleet.autoscaling.hpa import Hpa, HpaMetric, HpaSettings
from sim.fleet.autoscaling.observation import CONCURRENCY, HELD, POOL_METRICS, REPLICA_METRICS, WAITING, Observation
from sim.fleet.autoscaling.policy import Decision, Policy, PolicySetting, PolicySettings
from sim.fleet.autoscaling.scaling_rules import ScalingRules

_PUSHED = frozenset({HELD, CONCURRENCY})
_TRIGGERS = REPLICA_METRICS + POOL_METRICS


class Trigger(Spec):
    metric: str = WAITING
    threshold: float = Field(default=5.0, ge=0.001, description="target, from one replica on")
    activation: float = Field(default=0.0, ge=0, description="above it the trigger is active, from zero and to zero")
    metric_type: Literal["average_value", "value"] = "average_value"

    @model_validator(mode="after")
    def _known(self) -> Trigger:
        if self.metric not in _TRIGGERS:
            raise ValueError(f"unknown metric {self.metric!r}, expected one of {', '.join(_TRIGGERS)}")
        return self


class KedaSettings(PolicySettings):
    policy: Literal["keda"]
    min: int = Field(default=0, ge=0, le=1_000_000, description="replicas")
    triggers: tuple[Trigger, ...] = Field(
        default=(Trigger(), Trigger(metric=CONCURRENCY, threshold=100.0)),
        min_length=1,
        description="one active trigger is enough; the one that asks for most replicas counts",
    )
    polling_interval: float = Field(default=30.0, gt=0, description="seconds between two looks at the triggers")
    push_interval: float = Field(
        default=0.7,
        ge=0,
        description="seconds until it is told of requests that are held at zero replicas (the add-on counts every 0.5 "
        "and tells every 0.2 s)",
    )
    cooldown_period: float = Field(default=300.0, ge=0, description="seconds after the last activity until zero")
    tolerance: float = Field(default=0.1, ge=0, description="of the autoscaler between, as for hpa")
    scale_up: ScalingRules | None = None
    scale_down: ScalingRules | None = None


class Keda(Policy):
    name = "keda"

    def __init__(self, settings: KedaSettings, setting: PolicySetting | None = None) -> None:
        self._settings = settings
        self._polled = -inf
        self._active_at: float | None = None
        if any(trigger.metric in _PUSHED for trigger in settings.triggers):
            self.push_interval = settings.push_interval
        metrics = tuple(
            HpaMetric.model_validate(
                {"metric": trigger.metric, "type": "external", trigger.metric_type: trigger.threshold}
            )
            for trigger in settings.triggers
        )
        self._hpa = Hpa(
            HpaSettings(
                policy="hpa",
                min=max(1, settings.min),
                max=settings.max,
                metrics=metrics,
                tolerance=settings.tolerance,
                scale_up=settings.scale_up,
                scale_down=settings.scale_down,
            )
        )

    def recommend(self, observation: Observation) -> Decision:
        current, now = observation.replicas, observation.time
        due = now >= self._polled + self._settings.polling_interval
        pushed = current == 0 and self._active(observation, _PUSHED)
        if due or pushed:
            self._polled = now if due else self._polled
            decision = self._poll(now, current, self._active(observation, _TRIGGERS))
            if decision is not None:
                return decision
        return self._hpa.recommend(observation) if current else Decision(0, "not active")

    def _poll(self, now: float, current: int, active: bool) -> Decision | None:
        """What activity says; None: nothing, the autoscaler between decides."""
        settings = self._settings
        if active:
            self._active_at = now
            return Decision(max(1, settings.min), "active") if current == 0 else None
        if current > 0 and settings.min == 0:
            if self._active_at is None or self._active_at + settings.cooldown_period < now:
                return Decision(0, "not active")
        elif current < settings.min:
            return Decision(settings.min, "below min")
        return None

    def _active(self, observation: Observation, metrics: frozenset[str] | tuple[str, ...]) -> bool:
        return any(
            observation.totals[trigger.metric] > trigger.activation
            for trigger in self._settings.triggers
            if trigger.metric in metrics
        )
