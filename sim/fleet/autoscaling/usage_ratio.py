"""From metrics to a number of replicas, as Kubernetes' Horizontal Pod Autoscaler does.

The rules are those of `pkg/controller/podautoscaler/replica_calculator.go` and `metrics/utilization.go` (Kubernetes
1.33 and later, with a tolerance for each direction). Quantities are whole thousandths, and divisions of them drop the
rest where theirs do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import ceil
from typing import NamedTuple


class Tolerance(NamedTuple):
    """How far the ratio of usage to target may be below and above 1 without any change."""

    down: float = 0.1
    up: float = 0.1

    def covers(self, ratio: float) -> bool:
        return 1.0 - self.down <= ratio <= 1.0 + self.up


def milli(value: float) -> int:
    """Thousandths, the rest dropped."""
    return int(value * 1000)


def pods_replicas(
    current: int,
    usage: Mapping[int, int],
    unready: Collection[int],
    missing: Collection[int],
    target: int,
    tolerance: Tolerance,
    requests: Mapping[int, int] | None = None,
) -> int | None:
    """Replicas for a metric of each pod; None: no pod that counts has one, and nothing can be said.

    Args:
        usage: thousandths, of the pods that are neither unready nor missing.
        unready: pods whose metric does not count: pending ones.
        missing: pods that have none.
        target: thousandths a pod; with `requests`, percent of what a pod requests.
        requests: thousandths of the resource that each pod requests; None: the metric is no resource.
    """
    if not usage:
        return None
    ratio = _ratio(usage, target, requests)
    joins_unready = bool(unready) and ratio > 1.0
    if not joins_unready and not missing:
        return current if tolerance.covers(ratio) else ceil(ratio * len(usage))
    filled = dict(usage)
    for pod in missing:
        if ratio < 1.0:
            filled[pod] = target if requests is None else requests[pod] * max(100, target) // 100
        elif ratio > 1.0:
            filled[pod] = 0
    if joins_unready:
        filled |= dict.fromkeys(unready, 0)
    again = _ratio(filled, target, requests)
    if tolerance.covers(again) or (ratio < 1.0 < again) or (again < 1.0 < ratio):
        return current
    replicas = ceil(again * len(filled))
    if (again < 1.0 and replicas > current) or (again > 1.0 and replicas < current):
        return current
    return replicas


def value_replicas(current: int, ready: int, usage: int, target: int, tolerance: Tolerance) -> int:
    """Replicas for one number of the whole pool with a target for the number itself."""
    ratio = usage / target
    if current == 0:
        return ceil(ratio)
    return current if tolerance.covers(ratio) else ceil(ratio * ready)


def average_replicas(current: int, usage: int, target: int, tolerance: Tolerance) -> int:
    """Replicas for one number of the whole pool with a target for its share of each pod."""
    if current and tolerance.covers(usage / (target * current)):
        return current
    return ceil(usage / target)


def _ratio(usage: Mapping[int, int], target: int, requests: Mapping[int, int] | None) -> float:
    total = sum(usage.values())
    if requests is None:
        return total // len(usage) / target
    return total * 100 // sum(requests[pod] for pod in usage) / target
