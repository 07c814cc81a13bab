"""Guaranteed no evict: nobody is preempted, no block is promised twice, and who can be let in is."""

import re
from pathlib import Path

import polars as pl
import pytest
from constant_steps import CONSTANT, STEP
from engine_workloads import BURST
from hypothesis import given, settings
from policy_workloads import changed, drive, policy_configs, tenant_traces
from short_traces import trace_of

from ground.errors import UserError
from sim.engine.capacity_policy import blocks_in_all
from sim.engine.config import EngineConfig
from sim.engine.plan import Plan
from sim.engine.scheduler import Scheduler
from sim.fleet.equal_replicas import equal_replicas
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate

NO_EVICT = EngineConfig(
    kv_blocks=10, block_size=4, max_num_seqs=8, enable_prefix_caching=False, capacity_policy="guaranteed_no_evict"
)


@settings(max_examples=60, deadline=None)
@given(policy_configs(block_size=4, capacity_policy="guaranteed_no_evict"), tenant_traces())
def test_what_is_promised_is_free_and_nobody_is_preempted(config: EngineConfig, trace: pl.DataFrame) -> None:
    """The blocks to come are those that each request, visited one by one, still needs."""

    def look(scheduler: Scheduler, plan: Plan, now: float) -> None:
        assert not plan.preempted and not plan.victims
        to_come = 0
        for one in scheduler._running:
            if one not in scheduler._prefilling:  # a step that is scheduled has its blocks
                scheduler._batch.settle(one, scheduler.context(one) + (not plan.paused))
            to_come += blocks_in_all(one, config.block_size) - one.holding.blocks
        prefilling = sum(blocks_in_all(one, config.block_size) - one.holding.blocks for one in scheduler._prefilling)
        assert scheduler._batch.blocks_to_come + prefilling == to_come <= scheduler.pool.free

    drive(config, trace, look)


def test_a_request_is_let_in_where_the_others_leave_it_blocks_to_its_end_and_not_before() -> None:
    """Two requests take nine blocks to their ends; a third of two fits once one of them has ended, of one at once."""
    long = [(0.0, 8, 9), (0.0, 8, 13)]  # 16 and 20 tokens that are computed: four and five blocks
    for output, admitted in ((1, STEP), (2, 9 * STEP)):
        trace = trace_of(*long, (STEP, 4, output))
        requests = equal_replicas(trace, NO_EVICT, CONSTANT).run().requests
        assert requests["preemptions"].sum() == 0
        assert requests["first_scheduled"][2] == admitted
    usual = equal_replicas(trace, changed(NO_EVICT, capacity_policy="max_utilization"), CONSTANT).run().requests
    assert usual["first_scheduled"][2] == STEP


def test_a_prefix_that_others_hold_is_not_promised_again() -> None:
    """Both read the same four blocks; alone each needs six of the eight."""
    trace = trace_of((0.0, 17, 8), (STEP, 17, 8)).with_columns(
        prefix_ids=pl.Series([[1, 2, 3, 4]] * 2), prefix_block_tokens=pl.lit(4)
    )
    config = changed(NO_EVICT, kv_blocks=8, enable_prefix_caching=True)
    requests = equal_replicas(trace, config, CONSTANT).run().requests
    assert requests["cached_tokens"].to_list() == [0, 16]
    assert requests["first_scheduled"].to_list() == [0.0, STEP]
    alone = equal_replicas(trace.drop("prefix_ids", "prefix_block_tokens"), config, CONSTANT).run().requests
    assert alone["first_scheduled"][1] == 8 * STEP


def scenario(**engine: object):
    return make_scenario(BURST | {"engine": {"kv_blocks": 300, **engine}}, {}, Path(), "test")


def test_of_a_scenario_that_preempts_it_leaves_nothing_to_compute_twice() -> None:
    usual, kept = (simulate(scenario(capacity_policy=one)) for one in ("max_utilization", "guaranteed_no_evict"))
    assert usual.requests["preemptions"].sum() > 0
    assert kept.requests["preemptions"].sum() == 0
    assert kept.steps["prefill_tokens"].sum() < usual.steps["prefill_tokens"].sum()
    assert kept.requests["finish"].is_not_null().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kv_reservation": "oracle"},
            "kv_reservation is oracle and capacity_policy guaranteed_no_evict is given; expected paged",
        ),
        ({"kv_cache": False, "kv_blocks": None}, "kv_cache is false and capacity_policy guaranteed_no_evict is given"),
        ({"pipeline_parallel": 2}, "pipeline_parallel is 2 and capacity_policy guaranteed_no_evict is given"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        scenario(capacity_policy="guaranteed_no_evict", **settings)
