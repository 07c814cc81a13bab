"""The real engine under every scheduling policy: the simulator's tables, and the tokens of an uncached decoder."""

from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from policy_workloads import policy_configs, tenant_traces
from real_engine_runs import TINY, VOCABULARY, greedy_without_cache, make_trace
from scripted_time import FakeTime, StepTimes

from calibrate.decoder import Decoder
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.results.folder import read_run
from sim.study.scenario import Scenario, make_scenario
from traces.table import Trace
from validate.engine.engine import Engine
from validate.measure import Machine, measure_reference


@settings(deadline=None, max_examples=18)
@given(policy_configs(block_size=4, swap_blocks=0), tenant_traces(), st.booleans())
def test_the_same_step_times_give_the_simulators_tables(
    config: EngineConfig, requests: pl.DataFrame, ahead: bool
) -> None:
    predicted = equal_replicas(requests, config, StepTimes(), leap=False).run()
    fake = FakeTime(config.block_size, ahead)
    engine = Engine(config, fake, vocabulary=VOCABULARY, clock=fake, warm_up=False)
    measured = engine.replay(Trace(requests, "test", "test", len(requests)))
    assert_frame_equal(measured.requests, predicted.requests, abs_tol=1e-9, rel_tol=0)
    assert_frame_equal(measured.steps, predicted.steps, abs_tol=1e-9, rel_tol=0)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    "policies",
    [
        {"prefill_policy": "prefill_first", "scheduling_policy": "shortest_prompt"},
        {"prefill_policy": "decode_first", "resume_below": 1, "scheduling_policy": "length_buckets"},
        {"capacity_policy": "guaranteed_no_evict", "scheduling_policy": "earliest_deadline"},
        # No step of this machine takes so short: all budgets are the least.
        {"token_budget": {"tpot_target": 1e-9, "minimum": 6}, "scheduling_policy": "fair_share"},
    ],
)
def test_tokens_are_those_of_an_uncached_decoder(policies: dict, ahead: bool) -> None:
    torch.set_num_threads(1)
    shared = {"prefix_ids": [1, 2], "prefix_block_tokens": 8}
    trace = make_trace(
        [{"arrival": 0.0, "prompt_tokens": 20 + i, "output_tokens": 24, **shared} for i in range(3)]
        + [{"arrival": 0.0, "prompt_tokens": 30, "output_tokens": 20} for _ in range(3)]
    )
    settings = {"kv_blocks": 20, "block_size": 8, "max_num_seqs": 6, "max_num_batched_tokens": 16}
    config = EngineConfig.model_validate(settings | {"async_scheduling": ahead} | policies)
    decoder = Decoder(TINY, dtype=torch.float64, kv_blocks=20, block_size=8)
    engine = Engine(config, decoder, vocabulary=VOCABULARY)
    measured = engine.replay(trace)
    assert engine.outputs == greedy_without_cache(trace, 10, 8)
    steps = measured.steps
    mixed = (steps["prefill_tokens"] > 0) & (steps["decode_seqs"] > 0)
    assert mixed.any() == (config.prefill_policy != "prefill_first")
    if config.capacity_policy == "guaranteed_no_evict":
        assert measured.requests["preemptions"].sum() == 0
    if config.token_budget is not None:
        assert ((steps["prefill_tokens"] + steps["decode_seqs"]).slice(6) <= 6).all()


def scenario(**settings: object) -> Scenario:
    data = {
        "model": "tiny-llama",
        "profile": "datasheet:h100-sxm-80gb",
        "trace": {
            "synth": {
                "requests": 3,
                "arrivals": {"process": "constant", "rate": 100},
                "lengths": {
                    "prompt": {"distribution": "constant", "value": 20},
                    "output": {"distribution": "constant", "value": 3},
                },
            }
        },
        "engine": {"preset": "reference", "kv_blocks": 32, "max_num_seqs": 4, "max_num_batched_tokens": 64, **settings},
        "slo": {"ttft": 60},
    }
    return make_scenario(data, {}, Path(), "test")


def test_a_measured_run_takes_what_the_order_asks_for_from_the_scenario(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    measure_reference(scenario(scheduling_policy="earliest_deadline"), Machine(threads=1), tmp_path / "measured")
    torch.set_num_threads(before)
    assert read_run(tmp_path / "measured").requests["status"].to_list() == ["finished"] * 3


def test_a_measured_run_refuses_a_trace_without_what_the_order_asks_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fair_share: found a trace that names no tenant"):
        measure_reference(scenario(scheduling_policy="fair_share"), Machine(), tmp_path / "measured")
