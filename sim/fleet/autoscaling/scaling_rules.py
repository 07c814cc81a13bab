"""How fast and how soon a recommendation may be followed: stabilisation windows and scaling policies of Kubernetes.

The rules are those of `pkg/controller/podautoscaler/horizontal.go`, the defaults those of
`pkg/apis/autoscaling/v2/defaults.go`. Without any `behavior` there, the rules are older ones (`DefaultRules`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import ceil
from typing import Literal

from pydantic import Field

from ground.spec import Spec


class ScalingPolicy(Spec):
    type: Literal["pods", "percent"]
    value: int = Field(gt=0, description="replicas, or percent of the replicas as the period began")
    period: int = Field(default=15, gt=0, le=1800, description="seconds in which they may be added or removed")


class ScalingRules(Spec):
    stabilisation_window: int | None = Field(
        default=None, ge=0, le=3600, description="seconds whose recommendations all count; 0 upwards, 300 downwards"
    )
    select: Literal["max", "min", "disabled"] = Field(
        default="max", description="which policy counts: of the most change, of the least, or none may change anything"
    )
    policies: tuple[ScalingPolicy, ...] | None = Field(default=None, min_length=1, description="Kubernetes' defaults")
    tolerance: float | None = Field(default=None, ge=0, description="of the ratio, in this direction; 0.1")


_UP = ScalingRules(
    stabilisation_window=0,
    policies=(ScalingPolicy(type="pods", value=4), ScalingPolicy(type="percent", value=100)),
)
_DOWN = ScalingRules(stabilisation_window=300, policies=(ScalingPolicy(type="percent", value=100),))


class Rules(ABC):
    """Call `follow` once a decision, then `scaled` if the number of replicas changed."""

    def __init__(self) -> None:
        self._recommended: list[tuple[float, int]] = []  # (time, replicas)

    def begin(self, now: float, current: int) -> None:
        """The first decision: what there is counts as recommended."""
        if not self._recommended:
            self._recommended.append((now, current))

    @abstractmethod
    def follow(self, now: float, current: int, recommended: int, least: int, most: int) -> int:
        """How many replicas there should be, between the bounds."""

    def scaled(self, now: float, before: int, after: int) -> None:  # noqa: B027
        """The number of replicas changed, by what `follow` said or otherwise."""

    def _remember(self, now: float, recommended: int, window: float) -> None:
        self._recommended = [one for one in self._recommended if one[0] >= now - window]
        self._recommended.append((now, recommended))


class DefaultRules(Rules):
    """Where no behaviour is given: the largest recommendation of the window, at most twice the replicas or four."""

    def __init__(self, window: float = 300.0) -> None:
        super().__init__()
        self._window = window

    def follow(self, now: float, current: int, recommended: int, least: int, most: int) -> int:
        recent = [replicas for time, replicas in self._recommended if time >= now - self._window]
        self._remember(now, recommended, self._window)
        stable = max([recommended, *recent])
        return max(least, min(stable, most, max(2 * current, 4)))


class GivenRules(Rules):
    """The rules of `spec.behavior`, where at least one direction's are given."""

    def __init__(self, up: ScalingRules | None, down: ScalingRules | None) -> None:
        super().__init__()
        self._up = _filled(up, _UP)
        self._down = _filled(down, _DOWN)
        self._changes: list[tuple[float, int]] = []  # (time, replicas added)

    def follow(self, now: float, current: int, recommended: int, least: int, most: int) -> int:
        stable = self._stabilised(now, current, recommended)
        if stable > current:
            limit = max(current, self._limit(now, current, self._up, 1))
            return min(stable, most, limit)
        if stable < current:
            limit = min(current, self._limit(now, current, self._down, -1))
            return max(stable, least, limit)
        return stable

    def scaled(self, now: float, before: int, after: int) -> None:
        longest = max(policy.period for rules in (self._up, self._down) for policy in rules.policies or ())
        self._changes = [one for one in self._changes if one[0] > now - longest]
        self._changes.append((now, after - before))

    def _stabilised(self, now: float, current: int, recommended: int) -> int:
        """Not above the lowest recommendation of the window upwards, not below the highest of that downwards."""
        up, down = self._up.stabilisation_window, self._down.stabilisation_window
        assert up is not None and down is not None
        lowest = min([recommended, *(count for time, count in self._recommended if time > now - up)])
        highest = max([recommended, *(count for time, count in self._recommended if time > now - down)])
        self._remember(now, recommended, max(up, down))
        return min(max(current, lowest), highest)

    def _limit(self, now: float, current: int, rules: ScalingRules, sign: int) -> int:
        if rules.select == "disabled":
            return current
        limits = []
        for policy in rules.policies or ():
            began = current - sum(change for time, change in self._changes if time > now - policy.period)
            if policy.type == "pods":
                limits.append(began + sign * policy.value)
            elif sign > 0:
                limits.append(ceil(began * (1 + policy.value / 100)))
            else:
                limits.append(int(began * (1 - policy.value / 100)))
        most_change = max if sign > 0 else min
        least_change = min if sign > 0 else max
        return (most_change if rules.select == "max" else least_change)(limits)


def _filled(given: ScalingRules | None, default: ScalingRules) -> ScalingRules:
    if given is None:
        return default
    names = ("stabilisation_window", "policies")
    return given.model_copy(update={name: getattr(default, name) for name in names if getattr(given, name) is None})
