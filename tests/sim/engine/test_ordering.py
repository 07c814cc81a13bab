"""Orders of those who wait: who is next, that nobody starves, and what a tenant's service is."""

import math
import re
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from constant_steps import CONSTANT, STEP
from engine_workloads import BURST
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_workloads import ORDERS, changed, drive, policy_configs, tenant_traces

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.ordering import ORDERINGS
from sim.engine.ordering.service import OUTPUT_WEIGHT, PROMPT_WEIGHT, Service
from sim.engine.ordering.waiting_queue import WaitingQueue
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.order_columns import with_order_columns
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate
from traces.table import Trace

ONE_SEAT = EngineConfig(kv_blocks=10_000, max_num_seqs=1, max_num_batched_tokens=100_000, enable_prefix_caching=False)


def table(*requests: tuple[float, int, int], **columns: list) -> pl.DataFrame:
    """Each (arrival, prompt tokens, output tokens); `columns` beside."""
    arrival, prompt, output = zip(*requests, strict=True)
    names = {"request_id": range(len(requests)), "arrival": arrival, "prompt_tokens": prompt, "output_tokens": output}
    return pl.DataFrame(names | columns)


def order_of(trace: pl.DataFrame, **settings: object) -> list[int]:
    """Request ids as they are admitted to the one seat."""
    requests = equal_replicas(trace, changed(ONE_SEAT, **settings), CONSTANT).run().requests
    return requests.sort("first_scheduled")["request_id"].to_list()


# Each order by itself.


def test_the_shortest_prompt_is_next_whoever_came_first() -> None:
    trace = table((0.0, 9, 5), (0.1, 50, 1), (0.2, 10, 1), (0.3, 30, 1))
    assert order_of(trace, scheduling_policy="shortest_prompt") == [0, 2, 3, 1]


@given(st.integers(1, 80), st.integers(1, 80), st.floats(0.01, 0.4), st.sampled_from([0.0, 10.0, 100.0, 1e4]))
def test_a_second_of_waiting_takes_tokens_off_a_prompt(first: int, second: int, later: float, ageing: float) -> None:
    trace = table((0.0, 9, 9), (0.1, first, 1), (0.1 + later, second, 1))
    overtakes = second + ageing * (0.1 + later) < first + ageing * 0.1
    assert order_of(trace, scheduling_policy="shortest_prompt", ageing=ageing) == (
        [0, 2, 1] if overtakes else [0, 1, 2]
    )


def test_a_long_prompt_waits_for_ever_unless_it_ages() -> None:
    """Shorter ones come as fast as they are served."""
    short = [(0.1 + STEP * number, 10, 1) for number in range(40)]
    trace = table((0.0, 9, 4), (0.05, 60, 1), *short)
    assert order_of(trace, scheduling_policy="shortest_prompt")[-1] == 1
    aged = order_of(trace, scheduling_policy="shortest_prompt", ageing=50.0)
    assert aged.index(1) <= 2 + math.ceil((60 - 10) / 50.0 / STEP)


def test_the_earliest_deadline_is_next_and_those_without_are_last() -> None:
    trace = table((0.0, 9, 9), (0.1, 9, 1), (0.2, 9, 1), (0.3, 9, 1), deadline=[None, None, 2.0, 0.5])
    assert order_of(trace, scheduling_policy="earliest_deadline") == [0, 3, 2, 1]


def test_of_the_running_the_one_with_the_latest_deadline_is_preempted() -> None:
    trace = table((0.0, 30, 30), (0.01, 30, 30), deadline=[9.0, 1.0])
    config = changed(ONE_SEAT, kv_blocks=20, block_size=4, max_num_seqs=2, scheduling_policy="earliest_deadline")
    requests = equal_replicas(trace, config, CONSTANT).run().requests
    assert requests["preemptions"][0] > 0
    assert requests["preemptions"][1] == 0


def test_prompts_of_like_length_follow_each_other() -> None:
    trace = table((0.0, 9, 9), (0.1, 100, 1), (0.2, 5, 1), (0.3, 110, 1), (0.4, 6, 1), (0.5, 128, 1))
    assert order_of(trace, scheduling_policy="length_buckets") == [0, 1, 3, 5, 2, 4]
    assert order_of(trace, scheduling_policy="length_buckets", length_buckets=(5, 105)) == [0, 1, 4, 2, 3, 5]


def test_who_comes_to_a_bucket_in_its_turn_waits_for_the_next() -> None:
    trace = table((0.0, 9, 9), (0.1, 100, 9), (0.2, 5, 1), (1.3, 110, 1))
    assert order_of(trace, scheduling_policy="length_buckets") == [0, 1, 2, 3]


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_queue_gives_each_once_and_its_places_rise(order: str, data: st.DataObject) -> None:
    """Whatever is put in, put back and withdrawn; `place` says at any time who is next."""
    ordering = ORDERINGS[order](changed(ONE_SEAT, scheduling_policy=order))
    queue: WaitingQueue = ordering.make_queue()
    if ordering.service is not None:
        ordering.service.batch = Scheduler(ONE_SEAT)._batch
    inside: list[Request] = []
    gone: list[Request] = []
    for number in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["push", "push", "pop", "put_back", "remove"]))
        if action == "push":
            prompt, tenant = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([None, "a"]))
            inside.append(Request(number, float(number), prompt, 1, tenant=tenant, deadline=40.0 - prompt))
            queue.push(inside[-1])
        elif action == "put_back" and gone:
            inside.append(gone.pop())
            queue.put_back(inside[-1])
        elif action == "remove" and inside:
            request = data.draw(st.sampled_from(inside))
            inside.remove(request)
            assert queue.remove(request)
            assert not queue.remove(request)
        elif action == "pop" and inside:
            first = queue.head()
            assert first is min(inside, key=queue.place)
            assert queue.pop() is first
            inside.remove(first)
            gone.append(first)
        assert len(queue) == len(inside)


# Whatever the order.


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["fcfs", "priority", "earliest_deadline", "shortest_prompt", "length_buckets"]).flatmap(
        lambda order: policy_configs(block_size=4, scheduling_policy=order, token_budget=None)
    ),
    tenant_traces(),
)
def test_nobody_is_admitted_before_one_who_goes_before_him(config: EngineConfig, trace: pl.DataFrame) -> None:
    def look(scheduler: Scheduler, plan: Plan, now: float) -> None:
        waiting = [one for one in arrived if one.finish is None and not scheduler.has(one)]
        for request in [*plan.resumed, *(one for one in arrived if one.first_scheduled == now)]:
            assert all(places[request] < places[other] for other in waiting)
        places.update({one: scheduler._waiting.place(one) for one in waiting})

    class Watched(Scheduler):
        def add(self, request: Request) -> bool:
            matters = super().add(request)
            arrived.append(request)
            places[request] = self._waiting.place(request)
            return matters

        def _take_out(self, request: Request, granted: int, saving: Plan | None = None) -> None:
            super()._take_out(request, granted, saving)
            if request not in self._ended:
                places[request] = self._waiting.place(request)

    arrived: list[Request] = []
    places: dict[Request, tuple[float, ...]] = {}  # as of the last change of the queue
    drive(config, trace, look, Watched)


@settings(max_examples=50, deadline=None)
@given(policy_configs(block_size=4, scheduling_policy="fair_share", kv_blocks=25), tenant_traces())
def test_a_tenant_is_charged_for_his_prompts_and_outputs_and_what_he_is_lifted_by(
    config: EngineConfig, trace: pl.DataFrame
) -> None:
    """And for no more, whoever is preempted, resumed or left out of a step."""
    service: Service
    lifted: Counter[str | None] = Counter()

    class Watched(Scheduler):
        def __init__(self, config: EngineConfig) -> None:
            nonlocal service
            super().__init__(config)
            assert self._service is not None
            service = self._service
            lift = service.lift

            def watched() -> None:
                before = {tenant: service.of(tenant) for tenant in service._returning}
                lift()
                lifted.update({tenant: service.of(tenant) - tokens for tenant, tokens in before.items()})

            service.lift = watched  # type: ignore[method-assign]

        def add(self, request: Request) -> bool:
            arrived.append(request)
            return super().add(request)

    arrived: list[Request] = []

    def look(scheduler: Scheduler, plan: Plan, now: float) -> None:
        owed: Counter[str | None] = Counter()
        for one in arrived:
            if one.first_scheduled is None:
                continue
            tokens = one.output_tokens
            if one.finish is None:
                decodes = scheduler.has(one) and one not in scheduler._prefilling
                # Until it decodes, the token that comes with its prompt.
                tokens = scheduler.context(one) - one.prompt_tokens + 1 if decodes else one.generated + 1
            owed[one.tenant] += PROMPT_WEIGHT * one.prompt_tokens + OUTPUT_WEIGHT * tokens
        for tenant, charged in owed.items():
            assert service.of(tenant) == charged + lifted[tenant]

    drive(config, trace, look, Watched)
    assert min(lifted.values()) >= 0
    assert not service._waiting and not service._chosen


@settings(max_examples=50, deadline=None)
@given(
    policy_configs(
        block_size=4, scheduling_policy="fair_share", capacity_policy="guaranteed_no_evict", enable_prefix_caching=False
    ),
    tenant_traces(),
)
def test_of_tenants_who_wait_none_had_more_service_than_the_bound(config: EngineConfig, trace: pl.DataFrame) -> None:
    """Lemma 4.3 of Sheng et al. with M the tokens of the pool, which are more than any prompt has. One token more,
    since the first output token is charged with the prompt."""
    bound = OUTPUT_WEIGHT * config.kv_blocks * config.block_size + 1

    def look(scheduler: Scheduler, plan: Plan, now: float) -> None:
        service = scheduler._service
        assert service is not None
        served = [service.of(tenant) for tenant in service._waiting]
        assert max(served, default=0) - min(served, default=0) <= bound

    drive(config, trace, look)


def test_who_is_left_out_of_a_step_is_not_charged_for_it() -> None:
    """The budget halves after the first step, and the prompt that was admitted first takes all of it."""
    trace = table((0.0, 40, 1), (0.0, 10, 5), tenant=["a", "b"])
    config = changed(
        ONE_SEAT,
        max_num_seqs=2,
        max_num_batched_tokens=20,
        long_prefill_token_threshold=10,
        token_budget={"tpot_target": 0.01, "minimum": 10},
        scheduling_policy="fair_share",
    )
    left_out: list[int] = []
    seen: list[Service] = []

    def look(scheduler: Scheduler, plan: Plan, now: float) -> None:
        assert scheduler._service is not None
        seen.append(scheduler._service)
        left_out.append(len(plan.starved))

    drive(config, trace, look)
    assert sum(left_out) > 0
    assert seen[-1].of("b") == PROMPT_WEIGHT * 10 + OUTPUT_WEIGHT * 5


def test_two_who_ask_without_end_get_the_same_whatever_the_size_of_what_they_ask() -> None:
    """One asks for much at a time, the other for little: over any long time both had the same, in weighted tokens."""
    many = [(0.0, 40, 30) for _ in range(20)] + [(0.0, 4, 3) for _ in range(200)]
    trace = table(*many, tenant=["a"] * 20 + ["b"] * 200)
    config = changed(ONE_SEAT, kv_blocks=100, block_size=4, max_num_seqs=4, scheduling_policy="fair_share")
    bound = OUTPUT_WEIGHT * 400 + 1
    gaps: list[int] = []

    def look(scheduler: Scheduler, plan: Plan, now: float) -> None:
        service = scheduler._service
        assert service is not None
        if service.contested:
            gaps.append(abs(service.of("a") - service.of("b")))

    drive(config, trace, look)
    assert len(gaps) > 200
    assert max(gaps) <= bound
    assert max(gaps) > 0


def test_who_comes_back_has_no_credit() -> None:
    """Tenant b asks for nothing while a is served, and then for as much as a: they take turns from there on."""
    alone = [(0.0, 10, 10)] * 5
    both = [(50.0 * STEP, 10, 10)] * 8
    tenants = ["a"] * 5 + ["a", "b"] * 4
    trace = table((0.0, 10, 10), *alone[1:], *both, tenant=tenants)
    served = [tenants[one] for one in order_of(trace, scheduling_policy="fair_share")]
    assert served[:5] == ["a"] * 5
    assert sorted(served[5:7]) == sorted(served[7:9]) == sorted(served[9:11]) == ["a", "b"]


# From a scenario.


def scenario(**engine: object):
    data = BURST | {"engine": {"kv_blocks": 2000, "max_num_seqs": 4, **engine}}
    return make_scenario(data, {}, Path(), "test")


def flood() -> Trace:
    """One tenant sends twenty requests at once, and another one soon after."""
    columns = table(*[(0.0, 300, 50)] * 20, (0.05, 300, 50)).with_columns(
        tenant=pl.Series(["heavy"] * 20 + ["light"]), deadline=pl.Series([None] * 20 + [0.5], dtype=pl.Float64)
    )
    return Trace(columns, "test", "test", 21)


@pytest.mark.parametrize("order", ["fair_share", "earliest_deadline"])
def test_a_flood_does_not_drown_the_other_tenant(order: str) -> None:
    plain, fair = (
        simulate(scenario(scheduling_policy=policy), flood()).requests["ttft"][20] for policy in ("fcfs", order)
    )
    assert fair < 0.4 * plain


def test_a_plain_run_carries_no_column_that_its_order_does_not_ask_for() -> None:
    requests = flood().requests
    assert not {"tenant", "deadline"} & set(with_order_columns(requests, {"fcfs", "priority"}, None).columns)
    both = with_order_columns(requests, {"fair_share", "earliest_deadline"}, 2.0)
    assert both["deadline"].to_list() == [None] * 20 + [0.5]
    assert both["tenant"].to_list() == requests["tenant"].to_list()


def test_without_deadlines_the_slo_is_one() -> None:
    requests = with_order_columns(flood().requests.drop("deadline"), {"earliest_deadline"}, 1.5)
    assert requests["deadline"].to_list() == [1.5] * 21


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("fair_share", "engine.scheduling_policy is fair_share: found a trace that names no tenant"),
        ("earliest_deadline", "found a trace without deadlines and no slo.ttft, expected one of them"),
    ],
)
def test_a_trace_without_what_the_order_asks_for_is_refused(order: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulate(scenario(scheduling_policy=order))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ageing": 5.0}, "engine: ageing is given and scheduling_policy is fcfs; expected shortest_prompt"),
        ({"length_buckets": [8]}, "length_buckets is given and scheduling_policy is fcfs; expected length_buckets"),
        (
            {"scheduling_policy": "length_buckets", "length_buckets": [8, 8]},
            "length_buckets are [8, 8]; expected rising positive integers",
        ),
        ({"scheduling_policy": "fair_share", "pipeline_parallel": 2}, "pipeline_parallel is 2 and scheduling_policy"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        scenario(**settings)


def test_the_default_of_an_option_is_spelled_out_where_it_is_used() -> None:
    assert scenario(scheduling_policy="shortest_prompt").resolved()["engine"]["ageing"] == 0.0
    assert "ageing" not in scenario().resolved()["engine"]
