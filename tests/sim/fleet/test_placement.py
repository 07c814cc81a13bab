"""Placement policies: what each one promises, whatever the sites look like."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.request import Request
from sim.fleet.placement import PLACEMENTS
from sim.fleet.placement.placement import PlacementSetting, Task

REQUEST = Request(0, 0.0, 10, 10)


@dataclass(frozen=True)
class Seen:
    """A site as a policy sees it."""

    name: str
    rtt: float
    fill: float
    seconds: float
    price: float

    def latency(self, request: Request, task: Task) -> float:
        return self.seconds

    def cost(self, request: Request, task: Task) -> float:
        return self.price


figures = st.floats(0, 10)
sites = st.lists(st.tuples(figures, figures, figures, figures), min_size=1, max_size=5).map(
    lambda rows: [Seen(f"site {place}", *row) for place, row in enumerate(rows)]
)
settings_ = st.builds(
    PlacementSetting, st.floats(0.1, 2.0), st.floats(0.5, 3.0), st.sampled_from(["nearest", "farthest"])
)
tasks = st.builds(Task, st.just("c"), st.none() | figures, st.none() | st.integers(0, 6).map(lambda n: f"site {n}"))


def chosen(policy: str, setting: PlacementSetting, task: Task, candidates: list[Seen]) -> Seen:
    return candidates[PLACEMENTS[policy](setting).choose(REQUEST, task, candidates)]


def keeping(setting: PlacementSetting, task: Task, candidates: list[Seen]) -> list[Seen]:
    return [site for site in candidates if task.deadline is None or site.seconds * setting.margin <= task.deadline]


@given(settings_, tasks, sites)
def test_fixed_goes_where_its_class_belongs(setting: PlacementSetting, task: Task, candidates: list[Seen]) -> None:
    names = [site.name for site in candidates]
    assert chosen("fixed", setting, task, candidates).name == (task.site if task.site in names else names[0])


@given(settings_, tasks, sites)
def test_deadline_aware_takes_the_nearest_or_farthest_in_time(
    setting: PlacementSetting, task: Task, candidates: list[Seen]
) -> None:
    found = chosen("deadline_aware", setting, task, candidates)
    if kept := keeping(setting, task, candidates):
        best = min if setting.prefer == "nearest" else max
        assert found in kept and found.rtt == best(site.rtt for site in kept)
    else:
        assert found.seconds == min(site.seconds for site in candidates)


@given(settings_, tasks, sites)
def test_cost_aware_takes_the_cheapest_in_time(setting: PlacementSetting, task: Task, candidates: list[Seen]) -> None:
    found = chosen("cost_aware", setting, task, candidates)
    if kept := keeping(setting, task, candidates):
        assert found in kept and found.price == min(site.price for site in kept)
    else:
        assert found.seconds == min(site.seconds for site in candidates)


@given(settings_, tasks, sites)
def test_load_aware_fills_one_site_before_the_next(
    setting: PlacementSetting, task: Task, candidates: list[Seen]
) -> None:
    found = chosen("load_aware", setting, task, candidates)
    open_sites = [site for site in candidates if site.fill < setting.threshold]
    assert found == open_sites[0] if open_sites else found.fill == min(site.fill for site in candidates)


@pytest.mark.parametrize("policy", sorted(PLACEMENTS))
def test_a_policy_changes_nothing_of_what_it_sees(policy: str) -> None:
    seen: list[Any] = [Seen("a", 1, 0, 1, 1), Seen("b", 2, 0, 2, 0)]
    made = PLACEMENTS[policy](PlacementSetting())
    assert len({made.choose(REQUEST, Task("c", 5.0, "b"), seen) for _ in range(5)}) == 1
