"""The same batching policies on the real engine: it waits for the window that the simulated one waits for."""

from dataclasses import replace

import polars as pl
import pytest
import torch
from batching_workloads import batchings, with_batching
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from real_engine_runs import TINY, VOCABULARY, configs, greedy_without_cache, make_trace, traces
from scripted_time import FakeTime, StepTimes

from calibrate.decoder import Decoder
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from validate.engine.engine import Engine
from validate.replay.transformers_manager import check_limits

WINDOWS = [
    {"policy": "static"},
    {"policy": "fixed_window", "seconds": 0.02, "cap": 3},
    {"policy": "fixed_window", "seconds": 0.02, "joins": "idle", "lanes": True},
    {"policy": "adaptive_window", "minimum": 0.002, "longest": 0.05, "cap": 3},
]


@settings(deadline=None, max_examples=20)
@given(traces(), configs(), st.booleans(), st.lists(st.integers(0, 2), min_size=14, max_size=14), st.data())
def test_the_same_step_times_give_the_simulators_tables(trace, config, ahead, priorities, data):
    config = with_batching(config, data.draw(batchings(config.max_num_seqs)))
    requests = trace.requests.with_columns(priority=pl.Series(priorities[: len(trace.requests)]))
    trace = replace(trace, requests=requests)
    predicted = equal_replicas(requests, config, StepTimes(), leap=True).run()
    fake = FakeTime(config.block_size, ahead)
    engine = Engine(config, fake, vocabulary=VOCABULARY, swap=fake, clock=fake, warm_up=False)
    measured = engine.replay(trace)
    assert_frame_equal(measured.requests, predicted.requests, abs_tol=1e-9, rel_tol=0)
    assert measured.steps["prefill_tokens"].sum() == predicted.steps["prefill_tokens"].sum()
    assert measured.lateness.max == 0.0


@pytest.mark.parametrize("batching", WINDOWS)
@pytest.mark.parametrize("ahead", [False, True])
def test_tokens_are_those_of_an_uncached_decoder(batching, ahead):
    """By the wall clock, whatever comes together."""
    torch.set_num_threads(1)
    shared = {"prefix_ids": [1, 2], "prefix_block_tokens": 8}
    rows = [{"arrival": 0.004 * i, "prompt_tokens": 20 + i, "output_tokens": 6, **shared} for i in range(4)]
    rows += [{"arrival": 0.03, "prompt_tokens": 30, "output_tokens": 5} for _ in range(4)]
    trace = make_trace(rows)
    config = EngineConfig(
        kv_blocks=20,
        block_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        async_scheduling=ahead,
        batching=batching,
    )
    engine = Engine(config, Decoder(TINY, dtype=torch.float64, kv_blocks=20, block_size=8), vocabulary=VOCABULARY)
    measured = engine.replay(trace).requests
    assert engine.outputs == greedy_without_cache(trace, 10, 8)
    assert measured["preemptions"].sum() == 0


def test_nothing_else_to_come_it_waits_for_the_window():
    fake = FakeTime(8)
    config = EngineConfig(kv_blocks=20, block_size=8, batching={"policy": "fixed_window", "seconds": 3.0})
    engine = Engine(config, fake, vocabulary=VOCABULARY, clock=fake, warm_up=False)
    trace = make_trace([{"arrival": 1.0, "prompt_tokens": 9, "output_tokens": 1}])
    assert engine.replay(trace).requests["first_scheduled"].to_list() == [4.0]


def test_transformers_has_no_windows():
    config = EngineConfig(kv_blocks=20, batching={"policy": "static"})
    with pytest.raises(UserError, match=r"engine\.batching is .*static.*; transformers runs with .*continuous"):
        check_limits(config, "cpu")
