"""The door keeps its rules: who is let in, who is shed, and that every request is one or the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from engine_workloads import BURST, LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.gauge import Gauge
from sim.engine.request import Request
from sim.fleet.admission import ADMISSIONS
from sim.fleet.admission.admission import Admission, Hall
from sim.fleet.admission.priority_shed import PriorityShed
from sim.fleet.admission_settings import AdmissionSettings, PriorityShedSettings
from sim.fleet.equal_replicas import equal_replicas
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate

GAUGES = st.lists(
    st.builds(Gauge, st.integers(0, 12), st.integers(0, 9), st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95, 1.0])),
    max_size=4,
)


def settings_of(**given_: Any) -> AdmissionSettings:
    return TypeAdapter(AdmissionSettings).validate_python(given_)


def door(
    options: AdmissionSettings, gauges: Sequence[Gauge] = (), *, outstanding: int = 0, held: int = 0, now: float = 0.0
) -> Admission:
    hall = Hall(lambda: now, lambda: len(gauges), lambda: outstanding, lambda: held, lambda: gauges)
    return ADMISSIONS[options.policy](options, hall)


def request(tokens: int = 2, priority: int = 0) -> Request:
    return Request(0, 0.0, tokens - 1, 1, priority=priority)


# One by one.


@given(st.integers(0, 40), GAUGES, st.none() | st.integers(1, 12), st.none() | st.integers(1, 30))
def test_max_outstanding(outstanding: int, gauges: list[Gauge], per_replica: int | None, fleet: int | None) -> None:
    if per_replica is None and fleet is None:
        return
    options = settings_of(policy="max_outstanding", per_replica=per_replica, fleet=fleet)
    full = fleet is not None and outstanding >= fleet
    full |= per_replica is not None and outstanding >= per_replica * max(1, len(gauges))
    assert bool(door(options, gauges, outstanding=outstanding).refuses(request())) == full


@given(GAUGES, st.integers(0, 5), st.integers(1, 30))
def test_queue_limit(gauges: list[Gauge], held: int, waiting: int) -> None:
    options = settings_of(policy="queue_limit", waiting=waiting)
    long = held + sum(gauge.waiting for gauge in gauges) >= waiting
    assert bool(door(options, gauges, held=held).refuses(request())) == long


@given(GAUGES, st.sampled_from([0.25, 0.5, 1.0]))
def test_kv_use(gauges: list[Gauge], threshold: float) -> None:
    options = settings_of(policy="kv_use", threshold=threshold)
    full = bool(gauges) and sum(gauge.kv_use for gauge in gauges) / len(gauges) >= threshold
    assert bool(door(options, gauges).refuses(request())) == full


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.0, 0.1, 0.5, 2.0, 30.0]), st.integers(2, 60)), max_size=40),
    st.sampled_from(["requests", "tokens"]),
    st.sampled_from([0.5, 3.0, 20.0]),
    st.sampled_from([1.0, 4.0, 50.0]),
)
def test_a_bucket_never_lets_in_more_than_a_burst_and_its_rate(
    story: list[tuple[float, int]], counts: str, rate: float, burst: float
) -> None:
    """In no stretch of time; and whom it turns away would have been too much for some stretch that ends then."""
    now = [0.0]
    options = settings_of(policy="token_bucket", counts=counts, rate=rate, burst=burst)
    bucket = ADMISSIONS["token_bucket"](
        options, Hall(lambda: now[0], lambda: 1, lambda: 0, lambda: 0, lambda: [Gauge(0, 0, 0.0)])
    )
    came: list[tuple[float, float]] = []  # (time, cost) of those who were let in
    for gap, tokens in story:
        now[0] += gap
        cost = 1.0 if counts == "requests" else float(tokens)
        refused = bool(bucket.refuses(request(tokens)))
        starts = [time for time, _ in came] + [now[0]]
        # What had come since each start, this one too, beyond what may.
        beyond = max(
            sum(paid for time, paid in came if time >= start) + cost - burst - rate * (now[0] - start)
            for start in starts
        )
        assert beyond > -1e-6 if refused else beyond < 1e-6
        if not refused:
            came.append((now[0], cost))


LEVELS = (
    {"below_priority": -1, "saturation": 0.5},
    {"below_priority": 0, "saturation": 1.0},
    {"below_priority": 3, "saturation": 1.7},
)


@given(GAUGES, st.integers(0, 700), st.sampled_from(["utilization", "concurrency"]))
def test_the_more_saturated_the_more_urgent_who_comes_in(
    gauges: list[Gauge], outstanding: int, saturation: str
) -> None:
    options = settings_of(policy="priority", levels=LEVELS, saturation=saturation)
    policy = door(options, gauges, outstanding=outstanding)
    if not gauges:
        level = 1.0
    elif saturation == "concurrency":
        level = outstanding / (100 * len(gauges))
    else:
        level = float(np.mean([max(gauge.waiting / 5, gauge.kv_use / 0.8) for gauge in gauges]))
    assert isinstance(policy, PriorityShed) and policy.saturation() == pytest.approx(level)
    for priority in range(-3, 5):
        shed = any(priority < one["below_priority"] and policy.saturation() >= one["saturation"] for one in LEVELS)
        assert bool(policy.refuses(request(priority=priority))) == shed


def test_by_default_only_what_is_sheddable_is_shed() -> None:
    """The Gateway API Inference Extension's rule, at exactly saturated: queues of 5."""
    options = PriorityShedSettings(policy="priority")
    saturated = door(options, [Gauge(5, 9, 0.1), Gauge(5, 9, 0.1)])
    assert saturated.refuses(request(priority=-1)) == "priority: -1 at saturation 1"
    assert not saturated.refuses(request(priority=0))
    assert not door(options, [Gauge(5, 9, 0.1), Gauge(4, 9, 0.1)]).refuses(request(priority=-1))


# In a fleet.

POLICIES: list[dict[str, Any]] = [
    {"policy": "max_outstanding", "fleet": 3},
    {"policy": "max_outstanding", "per_replica": 2},
    {"policy": "queue_limit", "waiting": 2},
    {"policy": "token_bucket", "rate": 20.0, "burst": 3.0},
    {"policy": "token_bucket", "counts": "tokens", "rate": 500.0, "burst": 100.0},
    {"policy": "kv_use", "threshold": 0.4},
    {"policy": "priority", "levels": [{"below_priority": 2, "saturation": 0.6}]},
]


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 3), st.sampled_from(POLICIES))
def test_every_request_is_served_or_shed_and_told_why(
    config: EngineConfig, trace: pl.DataFrame, replicas: int, policy: dict[str, Any]
) -> None:
    result = equal_replicas(trace, config, LinearStepTimes(), replicas=replicas, admission=settings_of(**policy)).run()
    requests = result.requests
    shed = requests.filter(pl.col("status") == "shed")
    assert set(requests["status"]) <= {"finished", "shed"}
    assert (requests["finish"].is_null() == (requests["status"] == "shed")).all()
    assert set(shed["replica"]) <= {-1}
    told = result.events.filter(pl.col("kind") == "shed").sort("request_id")
    assert told["request_id"].to_list() == shed["request_id"].to_list()
    assert told["time"].to_list() == shed["arrival"].to_list()
    assert told["amount"].to_list() == (shed["prompt_tokens"] + shed["output_tokens"]).to_list()
    assert all(detail.startswith(f"{policy['policy']}: ") for detail in told["detail"])


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 3), st.integers(1, 6))
def test_no_more_are_in_the_fleet_than_may_and_none_is_shed_before(
    config: EngineConfig, trace: pl.DataFrame, replicas: int, most: int
) -> None:
    """Recounted from the finished table."""
    options = settings_of(policy="max_outstanding", fleet=most)
    result = equal_replicas(trace, config, LinearStepTimes(), replicas=replicas, admission=options).run()
    arrival, finish = (result.requests[name].fill_null(-1.0).to_numpy() for name in ("arrival", "finish"))
    for index, status in enumerate(result.requests["status"]):
        # At one instant arrivals come before the ends of steps.
        there = int((finish[:index] >= arrival[index]).sum())
        assert status == ("shed" if there >= most else "finished")


def test_the_next_turn_comes_after_one_that_was_shed() -> None:
    trace = pl.DataFrame(
        {
            "request_id": [0, 1, 2],
            "arrival": [0.0, 0.0, None],
            "prompt_tokens": [10] * 3,
            "output_tokens": [50] * 3,
            "parent": [None, None, 1],
            "think_time": [None, None, 5.0],
        }
    )
    result = equal_replicas(
        trace, EngineConfig(kv_blocks=100), LinearStepTimes(), admission=settings_of(policy="max_outstanding", fleet=1)
    ).run()
    assert result.requests["status"].to_list() == ["finished", "shed", "finished"]
    assert result.requests["arrival"].to_list() == [0.0, 0.0, 5.0]


def test_a_scenario_sheds_and_its_report_counts_what_was_served() -> None:
    fleet = {"replicas": 2, "admission": {"policy": "max_outstanding", "per_replica": 4}}
    run = simulate(make_scenario(BURST | {"fleet": fleet}, {}, Path(), "scenario.yaml"))
    statuses = run.requests["status"].value_counts().sort("status")
    assert statuses["status"].to_list() == ["finished", "shed"] and statuses["count"].sum() == 30
    assert statuses["count"][1] >= 15  # thirty requests within a second, and eight at once
    assert run.scenario["fleet"]["admission"] == fleet["admission"]
    told = run.events.filter(pl.col("kind") == "shed")
    assert set(told["detail"]) == {"max_outstanding: 8 on 2 replicas"}


@pytest.mark.parametrize(
    ("admission", "said"),
    [
        ({"policy": "luck"}, r"fleet\.admission: .*'luck'.*'max_outstanding', 'queue_limit'"),
        ({"policy": "queue_limit"}, r"fleet\.admission\.waiting: Field required"),
        ({"policy": "queue_limit", "waiting": 0}, r"fleet\.admission\.waiting: .* found 0"),
        ({"policy": "max_outstanding"}, r"fleet\.admission: neither per_replica nor fleet is given; expected"),
        ({"policy": "kv_use", "queue": 5}, r"unknown key 'fleet\.admission\.queue'"),
        ({"policy": "priority", "levels": LEVELS[::-1]}, r"fleet\.admission: a level below priority 0 at 1 follows"),
    ],
)
def test_a_wrong_setting_is_told_in_a_line(admission: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_scenario(BURST | {"fleet": {"admission": admission}}, {}, Path(), "scenario.yaml")
