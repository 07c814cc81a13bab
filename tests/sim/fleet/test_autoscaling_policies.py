"""What each autoscaling policy says: by its published rule, and never outside its bounds."""

from math import ceil
from typing import Any

import pytest
from engine_workloads import LinearStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling_observations import CAPACITY, CONFIG, Played, histories, observe, pod, policy, starting, traffic

from sim.engine.config import EngineConfig
from sim.fleet.autoscaling.capacity import Capacity
from sim.fleet.autoscaling.observation import CONCURRENCY, HELD, WAITING

SETTINGS: list[dict[str, Any]] = [
    {"policy": "hpa"},
    {"policy": "hpa", "scale_up": {"select": "min"}, "scale_down": {"stabilisation_window": 30}},
    {"policy": "hpa", "metrics": [{"metric": "kv_blocks", "type": "resource", "utilization": 60}]},
    {"policy": "hpa", "min": 0, "metrics": [{"metric": CONCURRENCY, "type": "external", "value": 20}]},
    {"policy": "keda"},
    {"policy": "keda", "min": 2, "triggers": [{"metric": WAITING, "metric_type": "value"}]},
    {"policy": "planner", "predictor": "constant", "throughput_interval": 60},
    {"policy": "planner", "predictor": "naive", "role": "prefill"},
    {"policy": "planner", "predictor": "constant", "role": "decode", "correction": False},
    {"policy": "predictive", "interval": 15},
    {"policy": "predictive", "interval": 30, "rule": "target", "quantile": 0.9, "capacity": 4},
    {"policy": "schedule", "steps": [{"at": 10, "replicas": 7}, {"at": 200, "replicas": 99}], "period": 400},
]


@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize("given_settings", SETTINGS, ids=lambda one: " ".join(map(str, one.values()))[:40])
@given(rows=histories(), most=st.integers(3, 9))
def test_no_policy_leaves_its_bounds(given_settings: dict[str, Any], rows: Any, most: int) -> None:
    made, time = policy(**{**given_settings, "max": most}), 0.0
    for seconds, pods, came, door in rows:
        time += seconds
        said = made.recommend(observe(time, pods, came, **door))
        least = given_settings.get("min", 0 if given_settings["policy"] == "keda" else 1)
        unchanged = said.replicas == len(pods) and said.reason in (
            "no metrics",
            "disabled at zero replicas",
            "not active",
        )
        assert least <= said.replicas <= most or unchanged, said


def test_hpa_takes_the_metric_that_asks_for_most() -> None:
    metrics = [{"metric": WAITING, "average_value": 5}, {"metric": "seats", "type": "resource", "utilization": 50}]
    made = policy(policy="hpa", metrics=metrics)
    pods = [pod(0, waiting=10, running=32), pod(1, waiting=10, running=32)]
    assert made.recommend(observe(0, pods)) == (4, WAITING)
    assert policy(policy="hpa", metrics=metrics[::-1]).recommend(observe(0, pods)) == (4, "seats")


def test_hpa_does_not_scale_down_on_a_metric_while_another_cannot_be_read() -> None:
    """`TestNoScaleDownOneMetricEmpty` and `TestScaleUpOneMetricEmpty` of `horizontal_test.go`."""
    both = [{"metric": WAITING, "average_value": 5}, {"metric": CONCURRENCY, "type": "external", "average_value": 10}]
    blind = [starting(number) for number in range(5)]  # nothing is published yet
    assert policy(policy="hpa", metrics=both).recommend(observe(0, blind, **{CONCURRENCY: 10.0})).replicas == 5
    assert policy(policy="hpa", metrics=both).recommend(observe(0, blind, **{CONCURRENCY: 70.0})).replicas == 7
    alone = policy(policy="hpa", metrics=both[1:])
    assert alone.recommend(observe(0, blind, **{CONCURRENCY: 10.0})).replicas == 5  # the first one is stabilised
    assert alone.recommend(observe(301, blind, **{CONCURRENCY: 10.0})).replicas == 1


def test_hpa_counts_what_starts_as_idle_on_the_way_up_and_as_busy_on_the_way_down() -> None:
    made = policy(policy="hpa", metrics=[{"metric": WAITING, "average_value": 5}])
    busy = [pod(0, waiting=20), pod(1, waiting=20)]
    assert made.recommend(observe(0, busy)).replicas == 8 - 4  # twice as many at most
    # Two more are coming: 40 waiting over four pods are 10 each, so eight are wanted.
    on_the_way = [*busy, starting(2, pending=True), starting(3)]
    assert made.recommend(observe(15, on_the_way)).replicas == 8
    calm = policy(policy="hpa", metrics=[{"metric": WAITING, "average_value": 5}])
    idle = [pod(0, waiting=0), pod(1, waiting=0), starting(2)]
    calm.recommend(observe(0, idle))
    # The one that publishes nothing counts as at its target: one pod's worth, of three.
    assert calm.recommend(observe(400, idle)).replicas == 1


def test_hpa_holds_what_was_recommended_for_five_minutes() -> None:
    played = Played(policy(policy="hpa"), replicas=1)
    assert played.tick(15, waiting=40) == 4
    assert played.tick(15, waiting=40) == 8
    calm = [played.tick(15) for _ in range(22)]
    assert calm[:19] == [8] * 19
    assert calm[-1] == 1


def test_hpa_at_zero_is_disabled_unless_zero_is_allowed() -> None:
    external = [{"metric": HELD, "type": "external", "value": 3}]
    assert policy(policy="hpa").recommend(observe(0)) == (0, "disabled at zero replicas")
    assert policy(policy="hpa", min=0, metrics=external).recommend(observe(0, **{HELD: 7.0})).replicas == 3


def test_keda_activates_above_the_activation_threshold_only() -> None:
    triggers = [{"metric": HELD, "threshold": 2, "activation": 3}]
    made = policy(policy="keda", triggers=triggers)
    assert made.recommend(observe(0, **{HELD: 3.0})).replicas == 0
    assert made.recommend(observe(30, **{HELD: 4.0})).replicas == 1  # one, whatever the threshold asks for
    assert policy(policy="keda", triggers=triggers, min=3).recommend(observe(0, **{HELD: 0.0})).replicas == 3


def test_keda_is_told_of_held_requests_and_polls_the_rest() -> None:
    made = policy(policy="keda")
    assert made.push_interval == 0.7
    made.recommend(observe(0))
    assert made.recommend(observe(7, **{CONCURRENCY: 1.0})).replicas == 1
    polled = policy(policy="keda", triggers=[{"metric": "request_rate"}])
    assert polled.push_interval is None
    polled.recommend(observe(0))
    assert polled.recommend(observe(15, request_rate=9.0)).replicas == 0  # 30 s have not passed
    assert polled.recommend(observe(30, request_rate=9.0)).replicas == 1


def test_keda_goes_to_zero_only_after_the_cooldown_and_to_less_by_the_autoscaler() -> None:
    played = Played(policy(policy="keda", scale_down={"stabilisation_window": 0}), replicas=1)
    played.tick(0, waiting=60, **{CONCURRENCY: 60.0})
    while played.replicas < 12:
        played.tick(15, waiting=60, **{CONCURRENCY: 60.0})
    active = played.time
    assert played.tick(15) == 1  # the autoscaler between never goes below one
    while played.tick(15):
        pass
    assert 300 < played.time - active <= 300 + 2 * 30
    with_min = Played(policy(policy="keda", min=1), replicas=1)
    assert all(with_min.tick(60) == 1 for _ in range(20))


def test_keda_keeps_what_works_only_by_the_metric_it_was_given() -> None:
    """A queue that is empty is no activity, even where requests run: a trigger on what waits alone lets go of them."""
    played = Played(policy(policy="keda", triggers=[{"metric": WAITING}]), replicas=1)
    played.tick(0, waiting=1)
    for _ in range(30):
        played.tick(15, **{CONCURRENCY: 5.0})
    assert played.replicas == 0


def test_schedule_repeats() -> None:
    made = policy(policy="schedule", steps=[{"at": 100, "replicas": 5}, {"at": 200, "replicas": 2}], period=300)
    times = [0, 99, 100, 199, 200, 299, 300, 399, 400]
    assert [made.recommend(observe(time)).replicas for time in times] == [2, 2, 5, 5, 2, 2, 2, 2, 5]
    once = policy(policy="schedule", steps=[{"at": 100, "replicas": 5}])
    assert [once.recommend(observe(time)).replicas for time in (0, 100, 1e6)] == [1, 5, 5]


def test_predictive_adds_a_step_above_the_threshold_and_takes_one_where_the_rest_is_enough() -> None:
    made = policy(policy="predictive", forecaster="naive", capacity=1.0, interval=60, step=2, down_window=0)
    played = Played(made, replicas=5)
    assert played.tick(60, came=traffic(60, 60 * 4)) == 5  # 4 of 5: not above 80 %
    assert played.tick(60, came=traffic(60, 60 * 4 + 6)) == 7
    assert played.tick(60, came=traffic(60, 60 * 2)) == 5  # 2 of 5 is below a half
    assert played.tick(60, came=traffic(60, 60 * 2)) == 5  # 2 of 3 is not


def test_predictive_comes_before_the_load_that_its_history_foretells() -> None:
    """A load that repeats every ten minutes: at the end of the calm the replicas of the peak are asked for."""
    day = [1.0] * 6 + [9.0] * 4
    rule = {"rule": "target", "target": 1.0, "capacity": 1.0, "down_window": 0, "at_least_observed": False}
    made = policy(day * 4, policy="predictive", interval=60, horizon=2, **rule)
    played = Played(made, replicas=1)
    asked = [played.tick(0)] + [played.tick(60, came=traffic(60, round(60 * load))) for load in day]
    assert asked == [1, 1, 1, 1, 1, 9, 9, 9, 9, 9, 1]


def test_predictive_waits_until_it_knows_what_a_replica_can_do() -> None:
    made = policy(policy="predictive", forecaster="naive", interval=60, rule="target", target=0.5, itl=1.0, ttft=9.0)
    played = Played(made, replicas=1)
    assert [played.tick(15, came=traffic(15, 900)) for _ in range(3)] == [1, 1, 1]
    rate = CAPACITY.both(100, 50, ttft=9.0, itl=1.0).requests
    assert played.tick(15, came=traffic(15, 900)) == ceil(60 / (0.5 * rate)) > 1


def test_what_a_replica_can_do_is_the_best_batch_within_the_limits() -> None:
    steps = LinearStepTimes()
    for prompt, output, ttft, itl in [(100, 50, 9, 0.02), (400, 20, 0.05, 9), (3000, 300, 1, 0.03), (10, 900, 9, 1e-9)]:
        context = prompt + output / 2
        most = max(1, min(32, int(16_000 / context)))
        within = [n for n in range(1, most + 1) if steps.step([], n, round(n * context)) <= itl]
        fastest = max([n / steps.step([], n, round(n * context)) for n in within or [1]])
        assert CAPACITY.decode_throughput(itl, context) == pytest.approx(fastest)
        rates = CAPACITY.both(prompt, output, ttft=ttft, itl=itl)
        batch = rates.requests * output * rates.itl
        assert batch == pytest.approx(round(batch))
        assert 1 <= round(batch) <= most
        assert round(batch) == 1 or (rates.itl <= itl and rates.ttft <= ttft)
        # A prefill a step makes up for those that end: decodes and prefills fit the budget together.
        assert round(batch) == 1 or round(batch) * (1 + prompt / output) <= CONFIG.max_num_batched_tokens
    whole = steps.step([(512, 0)], 0, 0) + steps.step([(488, 512)], 0, 0)
    assert CAPACITY.ttft(1000) == pytest.approx(whole)
    assert CAPACITY.prefill_throughput(1000) == pytest.approx(1000 / whole)


def test_the_planner_of_a_prefill_and_of_a_decode_pool_follows_its_formulas() -> None:
    """`_compute_replica_requirements` of `planner_core.py`, with a predictor that takes the last interval."""
    prompt, output, seconds, count = 300, 60, 180, 9000
    common = {"policy": "planner", "predictor": "constant", "load_scaling": False, "itl": 0.05}
    expected_ttft = CAPACITY.ttft(prompt)
    for ttft, correction in ((expected_ttft / 2, 0.5), (expected_ttft * 3, 1.0)):
        made = policy(**common, role="prefill", max=10_000)
        came = traffic(seconds, count, prompt, output, ttft=ttft)
        said = made.recommend(observe(seconds, [pod(0)], came))
        load = count * (prompt * correction) / seconds
        assert said.replicas == ceil(load / CAPACITY.prefill_throughput(prompt))
    for slower in (1.0, 1.5):
        made = policy(**common, role="decode", max=10_000)
        context, ready = prompt + output / 2, 20
        e2e = 1.0 + 0.02 * (output - 1)
        concurrency = count / ready * e2e / seconds
        itl = CAPACITY.itl(concurrency, context) * slower
        came = traffic(seconds, count, prompt, output, ttft=1.0 + (0.02 - itl) * (output - 1), itl=itl)  # same e2e
        said = made.recommend(observe(seconds, [pod(number) for number in range(ready)], came))
        best = CAPACITY.decode_throughput(0.05 / slower, context)
        assert said.replicas == ceil(count * output / seconds / best)


def test_the_planner_of_a_co_located_pool_divides_demand_by_what_keeps_both_limits() -> None:
    made = policy(policy="planner", predictor="constant", load_scaling=False, correction=False, ttft=0.2, itl=0.03)
    said = made.recommend(observe(180, [pod(0)], traffic(180, 3600, 200, 40)))
    assert said == (ceil(20 / CAPACITY.both(200, 40, ttft=0.2, itl=0.03).requests), "throughput")


def test_the_planner_does_nothing_without_traffic_and_between_its_intervals() -> None:
    made = policy(policy="planner", predictor="constant", load_scaling=False)
    assert made.recommend(observe(100, [pod(0), pod(1)], traffic(100, 9000))).replicas == 2
    idle = policy(policy="planner", predictor="constant")
    assert idle.recommend(observe(180, [pod(0), pod(1)], traffic(180, 0))).replicas == 2


def planned(**more: Any) -> Played:
    """A planner that has planned once: one replica is enough for the traffic."""
    played = Played(policy(policy="planner", predictor="constant", throughput_interval=60, **more), replicas=1)
    played.tick(60, came=traffic(60, 60, 100, 50))
    assert played.replicas == 1
    return played


def test_between_two_plans_the_planner_adds_one_where_all_are_late_and_takes_one_where_none_would_be() -> None:
    played = planned(ttft=0.1, itl=0.05)
    late, calm = pod(0, running=4, kv_use=0.1, queued_tokens=9000), pod(1, running=2, kv_use=0.05)
    ask = played.policy.recommend
    assert ask(observe(65, [late])).replicas == 2
    assert ask(observe(70, [late, calm])).replicas == 2  # not all are late
    assert ask(observe(75, [late, late, starting(2)])).replicas == 3  # one is coming: its effect is not seen yet
    assert ask(observe(80, [calm, calm, calm])).replicas == 2
    assert ask(observe(85, [calm])).replicas == 1
    slow = planned(ttft=9.0, itl=0.012)
    crowded = pod(0, running=30, kv_use=0.9)
    assert slow.policy.recommend(observe(65, [crowded])).replicas == 2
    # Two that are half full could not take what a third one has.
    full = pod(0, running=4, kv_use=0.7)
    roomy = planned(ttft=9.0, itl=9.0)
    assert roomy.policy.recommend(observe(65, [full, full, full])).replicas == 3


def test_the_planner_never_goes_below_what_throughput_asks_for() -> None:
    made = policy(policy="planner", predictor="constant", throughput_interval=60, correction=False)
    played = Played(made, replicas=9)
    rate = CAPACITY.both(100, 50, ttft=0.5, itl=0.05).requests
    needed = ceil(4.5 * rate / rate)
    played.tick(60, came=traffic(60, round(60 * 4.5 * rate), 100, 50))
    assert played.replicas >= needed
    for _ in range(10):
        played.tick(5)
    assert played.replicas == needed


def test_capacity_is_bounded_by_seats_and_by_the_kv_pool() -> None:
    small = EngineConfig(kv_blocks=10, block_size=16, max_num_seqs=4, max_num_batched_tokens=64)
    capacity = Capacity(small, LinearStepTimes())
    steps = LinearStepTimes()
    assert capacity.decode_throughput(9.0, 20) == pytest.approx(4 / steps.step([], 4, 80))
    assert capacity.decode_throughput(9.0, 80) == pytest.approx(2 / steps.step([], 2, 160))
