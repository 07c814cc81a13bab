"""The real engine decides what the simulator decides, loses nothing and computes what an uncached decoder computes."""

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from real_engine_runs import TINY, VOCABULARY, configs, greedy_without_cache, make_trace, traces
from scripted_time import FakeTime, StepTimes

from calibrate.block_swap import BlockSwap
from calibrate.decoder import Decoder
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.results.tables import REQUESTS, STEPS
from validate.engine.clock import WallClock
from validate.engine.engine import Engine


@settings(deadline=None, max_examples=50)
@given(traces(), configs(), st.booleans())
def test_the_same_step_times_give_the_simulators_tables(trace, config, ahead):
    predicted = equal_replicas(trace.requests, config, StepTimes(), leap=False).run()
    fake = FakeTime(config.block_size, ahead)
    engine = Engine(config, fake, vocabulary=VOCABULARY, swap=fake, clock=fake, warm_up=False)
    finished = []
    measured = engine.replay(trace, on_finish=lambda: finished.append(1))
    assert dict(measured.requests.schema) == REQUESTS
    assert dict(measured.steps.schema) == STEPS
    assert_frame_equal(measured.requests, predicted.requests, abs_tol=1e-9, rel_tol=0)
    assert_frame_equal(measured.steps, predicted.steps, abs_tol=1e-9, rel_tol=0)
    assert (measured.sessions is None) == (predicted.sessions is None)
    if measured.sessions is not None:
        assert_frame_equal(measured.sessions, predicted.sessions, abs_tol=1e-9, rel_tol=0)
        assert_frame_equal(evictions(measured), evictions(predicted), abs_tol=1e-9, rel_tol=0)
    # Nothing is lost: every request ends, and as long as the trace says.
    assert len(finished) == len(trace.requests)
    done = measured.requests.filter(pl.col("status") == "finished")
    assert {i: len(tokens) for i, tokens in engine.outputs.items()} == dict(
        done.select("request_id", "output_tokens").iter_rows()
    )
    assert measured.engine["steps"] == len(measured.steps)
    assert fake.steps == (measured.steps["prefill_seqs"] + measured.steps["decode_seqs"] > 0).sum()
    assert measured.lateness.max == 0.0


def evictions(result):
    return result.events.filter(pl.col("kind") == "session_evicted")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kv_cache": False}, "engine.kv_cache is false; expected true"),
        ({"kv_reservation": "oracle"}, "engine.kv_reservation is oracle; expected paged"),
    ],
)
def test_what_only_a_simulated_engine_has_is_refused(setting, message):
    with pytest.raises(UserError, match=message):
        Engine(EngineConfig(kv_blocks=8, **setting), FakeTime(16, False), vocabulary=VOCABULARY)


class CountedSwap(BlockSwap):
    swaps = 0

    def swap_in(self, host_blocks, device_blocks):
        self.swaps += 1
        return super().swap_in(host_blocks, device_blocks)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("swap_blocks", [0, 5, 40])
def test_tokens_are_those_of_an_uncached_decoder(ahead, swap_blocks):
    """Under chunked prefill, shared prefixes, and preemption with recompute and swap: all at once."""
    torch.set_num_threads(1)
    shared = {"prefix_ids": [1, 2], "prefix_block_tokens": 8}
    trace = make_trace(
        [{"arrival": 0.0, "prompt_tokens": 20 + i, "output_tokens": 24, **shared} for i in range(3)]
        + [{"arrival": 0.0, "prompt_tokens": 30, "output_tokens": 20} for _ in range(3)]
    )
    config = EngineConfig(
        kv_blocks=20,
        block_size=8,
        max_num_seqs=6,
        max_num_batched_tokens=16,
        async_scheduling=ahead,
        swap_blocks=swap_blocks,
    )
    decoder = Decoder(TINY, dtype=torch.float64, kv_blocks=20, block_size=8)
    swap = CountedSwap(decoder, swap_blocks)
    engine = Engine(config, decoder, vocabulary=VOCABULARY, swap=swap)
    measured = engine.replay(trace).requests
    assert (swap.swaps > 0) == (swap_blocks > 0)
    assert measured["preemptions"].sum() > 0
    assert measured["cached_tokens"].sum() > 0
    assert engine.outputs == greedy_without_cache(trace, 10, 8)


def test_a_second_replay_has_nothing_of_the_first():
    trace = make_trace([{"arrival": 0.0, "prompt_tokens": 20, "output_tokens": 3, "prefix_ids": [1, 2, 3]}])
    fake = FakeTime(8)
    engine = Engine(EngineConfig(kv_blocks=20, block_size=8), fake, vocabulary=VOCABULARY, clock=fake, warm_up=False)
    assert_frame_equal(engine.replay(trace).requests, engine.replay(trace).requests)


def test_warm_up_runs_before_the_clock_starts():
    trace = make_trace([{"arrival": 0.0, "prompt_tokens": 9, "output_tokens": 1}])

    class Warm(FakeTime):
        def run(self, batch):
            self.steps += 1
            self.time += 1.0
            return [0] * len(batch)

    fake = Warm(8)
    engine = Engine(EngineConfig(kv_blocks=20, block_size=8, max_num_seqs=4), fake, vocabulary=97, clock=fake)
    table = engine.replay(trace).requests
    assert fake.steps > 1
    assert table["e2e"].to_list() == [1.0]


def test_a_request_that_can_never_run_is_named_before_anything_runs():
    trace = make_trace([{"arrival": 0.0, "prompt_tokens": 90, "output_tokens": 9}])
    fake = FakeTime(8)
    engine = Engine(EngineConfig(kv_blocks=4, block_size=8), fake, vocabulary=97, clock=fake)
    with pytest.raises(UserError, match=r"request 0 has 90 prompt \+ 9 output tokens"):
        engine.replay(trace)
    assert fake.steps == 0


def test_the_wall_clock_does_not_wake_early():
    clock = WallClock()
    for when in (0.0005, 0.003, 0.003, 0.001):
        clock.wait_until(when)
        assert clock.now() >= when
