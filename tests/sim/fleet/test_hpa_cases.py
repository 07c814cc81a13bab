"""The Horizontal Pod Autoscaler's arithmetic gives what Kubernetes' own tests expect.

The cases are those of `pkg/controller/podautoscaler/replica_calculator_test.go`: what pods report, what counts and how
many replicas come out. Quantities are thousandths; where a pod requests nothing else, it requests 1.
"""

from typing import NamedTuple

import pytest

from sim.fleet.autoscaling.usage_ratio import Tolerance, average_replicas, pods_replicas, value_replicas

WITHIN = Tolerance()


class Case(NamedTuple):
    name: str
    replicas: int | None  # expected
    current: int
    target: int
    levels: list[int]  # of the pods that count
    unready: int = 0  # further pods
    missing: int = 0
    requests: list[int] | None = None  # of the pods that count


UTILISATION = [
    Case("no metrics of known pods", None, 1, 100, [], missing=1),
    Case("empty metrics", None, 4, 100, [], missing=3),
    Case("scale up", 5, 3, 30, [300, 500, 700]),
    Case("scale up, unready, less scale", 4, 3, 30, [500, 700], unready=1),
    Case("scale up, unready, no scale", 3, 3, 30, [400], unready=2),
    Case("scale up ignores failed pods", 4, 2, 30, [500, 700]),
    Case("scale down", 3, 5, 50, [100, 300, 500, 250, 250]),
    Case("scale down, unready", 2, 5, 50, [100, 300, 500], unready=2),
    Case("scale down, unscheduled", 1, 5, 50, [100], unready=4),
    Case("tolerance", 3, 3, 100, [1010, 1030, 1020], requests=[900, 1000, 1100]),
    Case("superfluous metrics", 24, 4, 100, [4000, 9500, 3000, 7000]),
    Case("missing metrics", 3, 4, 100, [400, 95], missing=2),
    Case("missing metrics, no change, equal", 2, 2, 100, [1000], missing=1),
    Case("missing metrics, no change, greater", 2, 2, 100, [1900], missing=1),
    Case("missing metrics, no change, less", 2, 2, 100, [600], missing=1),
    Case("missing metrics turn the direction", 3, 3, 50, [450], unready=1, missing=1),
    Case("missing metrics, unready, scale up", 4, 3, 50, [2000], unready=1, missing=1),
    Case("missing metrics, unready, scale down", 3, 4, 50, [100, 100], unready=1, missing=1),
    Case("rolling update with surge", 2, 2, 50, [100, 100], missing=1),
    Case(
        "just beyond the tolerance",
        9,
        10,
        56,
        [150] * 10,
        requests=[400, 200, 310, 290, 302, 298, 301, 299, 300, 300],
    ),
    Case(
        "just within the tolerance",
        10,
        10,
        55,
        [150] * 10,
        requests=[400, 200, 310, 290, 302, 298, 301, 299, 300, 300],
    ),
    # Of the rule, not of a test there: what is missing uses the target where that is above 100 %.
    Case("missing metrics, target above all", 2, 2, 300, [100], missing=1),
]

PLAIN = [
    Case("scale up", 4, 3, 15000, [20000, 10000, 30000]),
    Case("one pod", 2, 1, 4400, [8600]),
    Case("unready pods that report count", 6, 3, 15000, [50000, 10000, 30000]),
    Case("the mean loses what is below a thousandth", 7, 3, 15000, [50000, 15000, 30000]),
    Case("scale down", 3, 5, 20000, [12000] * 5),
    Case("tolerance", 3, 3, 20000, [20000, 21000, 21000]),
]


def pods_of(case: Case) -> tuple[dict[int, int], set[int], set[int]]:
    count = len(case.levels)
    unready = set(range(count, count + case.unready))
    missing = set(range(count + case.unready, count + case.unready + case.missing))
    return dict(enumerate(case.levels)), unready, missing


@pytest.mark.parametrize("case", UTILISATION, ids=lambda case: case.name)
def test_utilisation_of_a_resource(case: Case) -> None:
    usage, unready, missing = pods_of(case)
    requests = dict(enumerate(case.requests or [1000] * len(usage)))
    requests |= dict.fromkeys(unready | missing, 1000)
    assert pods_replicas(case.current, usage, unready, missing, case.target, WITHIN, requests) == case.replicas


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.name)
def test_a_metric_of_each_pod(case: Case) -> None:
    usage, unready, missing = pods_of(case)
    assert pods_replicas(case.current, usage, unready, missing, case.target, WITHIN) == case.replicas


@pytest.mark.parametrize(
    ("expected", "current", "ready", "usage", "target"),
    [
        (4, 3, 3, 20000, 15000),
        (5, 3, 1, 50000, 10000),  # unready pods do not multiply
        (2, 3, 1, 8600, 4400),
        (3, 5, 5, 12000, 20000),
        (3, 5, 5, 8600, 14334),
        (3, 3, 3, 20666, 20000),
        (3, 3, 3, 8600, 8888),
        (2, 0, 0, 8600, 4400),  # from zero: ceil of the ratio
        (0, 0, 0, 0, 4400),
    ],
)
def test_a_number_of_the_whole_with_a_value(expected: int, current: int, ready: int, usage: int, target: int) -> None:
    assert value_replicas(current, ready, usage, target, WITHIN) == expected


@pytest.mark.parametrize(
    ("expected", "current", "usage", "target"),
    [
        (4, 3, 20000, 5000),
        (4, 3, 8600, 2150),
        (3, 5, 6000, 2000),
        (3, 5, 8600, 2867),
        (4, 4, 20166, 5000),
        (3, 3, 8600, 2900),
        (2, 0, 8600, 4400),
        (0, 0, 0, 4400),
    ],
)
def test_a_number_of_the_whole_with_an_average(expected: int, current: int, usage: int, target: int) -> None:
    assert average_replicas(current, usage, target, WITHIN) == expected


def test_each_direction_has_its_tolerance() -> None:
    """Kubernetes 1.33: `tolerance` of `scaleUp` and of `scaleDown`."""
    eager, slow = Tolerance(down=0.5, up=0.0), Tolerance(down=0.0, up=0.5)
    assert average_replicas(10, 10_500, 1000, eager) == 11
    assert average_replicas(10, 10_500, 1000, slow) == 10
    assert average_replicas(10, 9_000, 1000, eager) == 10
    assert average_replicas(10, 9_000, 1000, slow) == 9
