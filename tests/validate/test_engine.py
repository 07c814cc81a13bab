"""The real engine decides what the simulator decides, loses nothing and computes what an uncached decoder computes."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from calibrate.block_swap import BlockSwap
from calibrate.decoder import Decoder, SequenceInput
from calibrate.model import ModelShape
from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.engine.session_retention import SessionRetentionSettings
from sim.fleet.equal_replicas import equal_replicas
from sim.results.tables import REQUESTS, STEPS
from traces.table import COLUMNS, Trace
from validate.engine.clock import WallClock
from validate.engine.engine import Engine
from validate.prompts import prompt_of

VOCABULARY = 97
TINY = ModelShape(
    name="tiny", hidden=16, layers=2, heads=2, kv_heads=1, head_dim=8, intermediate=32, vocab=VOCABULARY, dtype_bytes=4
)


class StepTimes:
    """Seconds of a step, by its tokens and its context alone, so that a chunk of one token costs what a decode does."""

    asks_spread = False

    def step(self, prefills, decodes, kv_tokens, spread=None):
        tokens = sum(new for new, _ in prefills) + decodes
        context = sum(cached for _, cached in prefills) + kv_tokens
        if not tokens:
            return 0.0  # a step that only preempts
        return 1e-3 + 1e-5 * tokens + 1e-7 * context

    def decode_law(self, decodes):
        return None

    def swap(self, out, into):
        return 3e-4 * out + 2e-4 * into

    def decode_run(self, decodes, kv_tokens, steps, spread=None):
        return np.array([self.step([], decodes, kv_tokens + i * decodes) for i in range(steps)])


class FakeTime:
    """Clock, decoder and host memory in one: time passes only by waiting, by steps and by their copies."""

    def __init__(self, block_size, ahead=False):
        self.block_size = block_size
        self.ahead = ahead
        self.time = 0.0
        self.launched = 0
        self.steps = 0
        self.copying = 0.0  # seconds of copies that the next step waits for

    def start(self):
        self.time = 0.0

    def now(self):
        return self.time

    def wait_until(self, when):
        assert when >= self.time
        self.time = when

    def launch(self, batch):
        self.launched += 1
        step = FakeStep(self, batch, self.copying)
        self.copying = 0.0
        return step

    def swap_out(self, device, host):
        assert len(set(device)) == len(set(host)) == len(host)
        self.copying += StepTimes().swap(len(host), 0)
        return self

    def swap_in(self, host, device):
        assert len(set(device)) == len(set(host)) == len(host)
        self.copying += StepTimes().swap(0, len(host))
        return self

    def before_compute(self):
        pass

    def wait(self):
        self.time += self.copying
        self.copying = 0.0

    def run(self, batch):
        self.steps += 1
        written = Counter()
        for sequence in batch:
            assert sequence.tokens
            for position in range(sequence.start, sequence.start + len(sequence.tokens)):
                block, offset = divmod(position, self.block_size)
                written[sequence.blocks[block], offset] += 1
        assert max(written.values()) == 1, "two sequences write to one place in the KV cache"
        self.time += StepTimes().step([(len(s.tokens), s.start) for s in batch], 0, 0)
        return [0] * len(batch)


class FakeStep:
    """Runs when it is waited for, after all that were launched before it."""

    graph = False

    def __init__(self, decoder, batch, copying):
        self.decoder, self.batch, self.number, self.copying = decoder, batch, decoder.launched, copying

    def tokens(self):
        assert self.decoder.steps == self.number - 1
        self.decoder.time += self.copying
        return self.decoder.run(self.batch)


def make_trace(rows):
    """Rows of dictionaries in order of arrival, with what is left out null."""
    names = ("arrival", "prompt_tokens", "output_tokens", "parent", "think_time", "prefix_ids", "prefix_block_tokens")
    names += ("session",)
    columns = {"request_id": list(range(len(rows)))} | {name: [row.get(name) for row in rows] for name in names}
    requests = pl.DataFrame(columns, schema={name: COLUMNS[name][0] for name in columns})
    return Trace(requests=requests, format="test", source="test", rows_read=len(rows))


@st.composite
def traces(draw):
    rows = []
    time = 0.0
    for index in range(draw(st.integers(1, 14))):
        prompt = draw(st.integers(1, 40))
        row = {"prompt_tokens": prompt, "output_tokens": draw(st.integers(1, 20))}
        if draw(st.booleans()):
            group = draw(st.integers(1, 2))
            row |= {"prefix_ids": [100 * group + i for i in range(-(-prompt // 8))], "prefix_block_tokens": 8}
            row |= {"session": draw(st.sampled_from([None, f"{group}", f"{group} too"]))}
        if index and draw(st.integers(0, 4)) == 0:
            row |= {"parent": draw(st.integers(0, index - 1)), "think_time": draw(st.floats(0, 0.02))}
        else:
            time += draw(st.sampled_from([0.0, 1e-4, 0.003, 0.05]))
            row |= {"arrival": time}
        rows.append(row)
    return make_trace(rows)


@st.composite
def configs(draw):
    seqs = draw(st.integers(1, 6))
    prefix_caching = draw(st.booleans())
    retention = st.builds(
        SessionRetentionSettings, ttl=st.sampled_from([None, 0.02]), max_sessions=st.none() | st.just(1)
    )
    return EngineConfig(
        kv_blocks=draw(st.integers(8, 30)),
        block_size=8,
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(seqs, 64)),
        enable_prefix_caching=prefix_caching,
        session_retention=draw(st.none() | retention) if prefix_caching else None,
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
        async_scheduling=draw(st.booleans()),
        swap_blocks=draw(st.sampled_from([0, 4, 100])),
        max_model_len=draw(st.sampled_from([None, 50])),
    )


@settings(deadline=None, max_examples=80)
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


def greedy_without_cache(trace, blocks, block_size):
    decoder = Decoder(TINY, dtype=torch.float64, kv_blocks=blocks, block_size=block_size)
    outputs = {}
    for row in trace.requests.to_dicts():
        sequence = prompt_of(row, vocabulary=VOCABULARY)
        for _ in range(row["output_tokens"]):
            sequence += decoder.step([SequenceInput(sequence, 0, list(range(blocks)))])
        outputs[row["request_id"]] = sequence[row["prompt_tokens"] :]
    return outputs


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
