"""Kubernetes' Horizontal Pod Autoscaler (`pkg/controller/podautoscaler/horizontal.go`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ground.spec import Spec
from sim.fleet.autoscaling.observation import (
    POOL_METRICS,
    REPLICA_METRICS,
    RESOURCES,
    WAITING,
    Observation,
)
from sim.fleet.autoscaling.policy import Decision, Policy, PolicySetting, PolicySettings
from sim.fleet.autoscaling.scaling_rules import DefaultRules, GivenRules, Rules, ScalingRules
from sim.fleet.autoscaling.usage_ratio import Tolerance, average_replicas, milli, pods_replicas, value_replicas

_NAMES = {"pods": REPLICA_METRICS, "external": REPLICA_METRICS + POOL_METRICS, "resource": RESOURCES}


class HpaMetric(Spec):
    """`pods`: a metric of each replica, with an average value. `external`: one number of the whole pool, summed over
    its replicas, with a value or an average value. `resource`: what replicas use of what they have, in percent."""

    metric: str = WAITING
    type: Literal["pods", "external", "resource"] = "pods"
    value: float | None = Field(default=None, ge=0.001, description="target for the number itself")
    average_value: float | None = Field(default=None, ge=0.001, description="target a replica")
    utilization: int | None = Field(default=None, gt=0, description="target in percent")

    @model_validator(mode="after")
    def _target_fits(self) -> HpaMetric:
        known = _NAMES[self.type]
        if self.metric not in known:
            raise ValueError(f"unknown metric {self.metric!r} of type {self.type}; expected one of {', '.join(known)}")
        allowed = {"pods": ("average_value",), "external": ("value", "average_value"), "resource": ("utilization",)}
        given = [name for name in ("value", "average_value", "utilization") if getattr(self, name) is not None]
        if len(given) != 1 or given[0] not in allowed[self.type]:
            expected = " or ".join(allowed[self.type])
            raise ValueError(f"a metric of type {self.type} has {', '.join(given) or 'no target'}; expected {expected}")
        return self


class HpaSettings(PolicySettings):
    policy: Literal["hpa"]
    metrics: tuple[HpaMetric, ...] = Field(
        default=(HpaMetric(average_value=5.0),), min_length=1, description="the one that asks for most replicas counts"
    )
    tolerance: float = Field(default=0.1, ge=0, description="of usage over target, in both directions")
    scale_up: ScalingRules | None = None
    scale_down: ScalingRules | None = None


class Hpa(Policy):
    name = "hpa"

    def __init__(self, settings: HpaSettings, setting: PolicySetting | None = None) -> None:
        up, down = settings.scale_up, settings.scale_down
        self._settings = settings
        self._rules: Rules = DefaultRules() if up is None and down is None else GivenRules(up, down)
        given = [None if rules is None else rules.tolerance for rules in (down, up)]
        self._tolerance = Tolerance(*(settings.tolerance if one is None else one for one in given))

    def recommend(self, observation: Observation) -> Decision:
        current, settings = observation.replicas, self._settings
        now, least, most = observation.time, settings.min, settings.max
        self._rules.begin(now, current)
        if current == 0 and least:
            return Decision(0, "disabled at zero replicas")
        if current > most:
            decision = Decision(most, "above max")
        elif current < least:
            decision = Decision(least, "below min")
        else:
            wanted = self._wanted(observation)
            if wanted is None:
                return Decision(current, "no metrics")
            decision = Decision(self._rules.follow(now, current, wanted.replicas, least, most), wanted.reason)
        if decision.replicas != current:
            self._rules.scaled(now, current, decision.replicas)
        return decision

    def _wanted(self, observation: Observation) -> Decision | None:
        """By the metric that asks for most; None where none can be read, or one cannot and fewer would be wanted."""
        best: Decision | None = None
        unread = 0
        for metric in self._settings.metrics:
            replicas = self._replicas_for(metric, observation)
            if replicas is None:
                unread += 1
            elif best is None or best.replicas == 0 or replicas > best.replicas:
                best = Decision(replicas, metric.metric)
        if best is None or (unread and best.replicas < observation.replicas):
            return None
        return best

    def _replicas_for(self, metric: HpaMetric, observation: Observation) -> int | None:
        current, tolerance = observation.replicas, self._tolerance
        if metric.type == "external":
            usage = milli(observation.totals[metric.metric])
            if metric.value is not None:
                return value_replicas(current, observation.ready, usage, milli(metric.value), tolerance)
            assert metric.average_value is not None
            return average_replicas(current, usage, milli(metric.average_value), tolerance)
        unready, missing = set(), set()
        usages: dict[int, int] = {}
        for pod in observation.pods:
            found = pod.usage if metric.type == "resource" else pod.metrics
            if pod.pending:
                unready.add(pod.replica)
            elif found is None:
                missing.add(pod.replica)
            else:
                usages[pod.replica] = milli(found[metric.metric])
        if metric.utilization is None:
            assert metric.average_value is not None
            return pods_replicas(current, usages, unready, missing, milli(metric.average_value), tolerance)
        requests = {pod.replica: milli((pod.requests or {}).get(metric.metric, 0.0)) for pod in observation.pods}
        return pods_replicas(current, usages, unready, missing, metric.utilization, tolerance, requests)
