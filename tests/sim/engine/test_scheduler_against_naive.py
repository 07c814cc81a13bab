"""The counting scheduler decides what a scheduler that visits everything decides."""

import polars as pl
from engine_workloads import configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_scheduler import NaiveRequest, NaiveScheduler

from sim.engine.config import EngineConfig
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler


def assert_same_step(ours: Scheduler, theirs: NaiveScheduler, plan: Plan, granted: dict[NaiveRequest, int]) -> None:
    decoding = ours.decoding(plan)
    mine_granted = {c.request.request_id: c.tokens for c in plan.chunks}
    mine_granted |= {request.request_id: 1 for request in decoding}
    assert plan.decodes == len(decoding)
    assert mine_granted == {request.request_id: tokens for request, tokens in granted.items()}
    computed = {n.request_id: n.computed for n in granted}
    contexts = [computed[r.request_id] for r in decoding]
    assert plan.kv_tokens == sum(contexts)
    if contexts:
        assert plan.spread == (sum(context * context for context in contexts), max(contexts))
    assert all(chunk.start == computed[chunk.request.request_id] for chunk in plan.chunks)
    assert ours.pool.free == len(theirs.queue)
    assert ours.swap.free == theirs.host


def assert_same_decisions(config: EngineConfig, trace: pl.DataFrame) -> None:
    """Run both step by step, one second a step, with arrivals at twenty times their speed."""
    ours, theirs = Scheduler(config), NaiveScheduler(config)
    due = [
        (
            row["arrival"] * 20,
            Request(*(row[c] for c in trace.columns)),
            NaiveRequest(
                row["request_id"], row["arrival"], row["prompt_tokens"], row["output_tokens"],
                tuple(row["prefix_ids"][: row["prompt_tokens"] // config.block_size]), row["priority"],
            ),
        )
        for row in trace.iter_rows(named=True)
    ]  # fmt: skip
    pairs = [(mine, naive) for _, mine, naive in due]
    now = 0.0
    running: tuple[Plan, list[tuple[NaiveRequest, bool]]] | None = (
        None  # the step that runs while the next one is scheduled
    )
    while any(naive.finish is None for _, naive in pairs):
        while due and due[0][0] <= now:
            _, mine, naive = due.pop(0)
            ours.add(mine)
            theirs.add(naive)
        scheduled = None
        plan = ours.schedule(now)
        granted = theirs.schedule(now)
        if plan is None:
            assert not granted
            if running is None:
                now = due[0][0]
                continue
        else:
            assert_same_step(ours, theirs, plan, granted)
            ours.advance(plan)
            scheduled = (plan, theirs.advance(granted))
        if not config.async_scheduling:
            running, scheduled = scheduled, None
        now += 1.0
        assert now < 20_000, "they live in lock"
        if running:
            ours.complete(running[0], now)
            theirs.complete(running[1], now)
        running = scheduled
    assert ours.swap.free == config.swap_blocks
    for mine, naive in pairs:
        assert (mine.first_scheduled, mine.first_token, mine.finish) == (
            naive.first_scheduled, naive.first_token, naive.finish,
        )  # fmt: skip
        assert mine.preemptions == naive.preemptions
        assert mine.cached_tokens == naive.cached


@settings(max_examples=150, deadline=None)
@given(configs(block_size=4), traces(id_tokens=4))
def test_same_decisions(config: EngineConfig, trace: pl.DataFrame) -> None:
    assert_same_decisions(config.model_copy(update={"enable_prefix_caching": False}), trace)


@settings(max_examples=150, deadline=None)
@given(configs(block_size=4), traces(id_tokens=4), st.integers(0, 60))
def test_same_decisions_and_hits(config: EngineConfig, trace: pl.DataFrame, spare: int) -> None:
    """With blocks for all who can run at once nobody is preempted, while the cache still has to evict."""
    enough = config.max_num_seqs * 24 + spare
    assert_same_decisions(config.model_copy(update={"enable_prefix_caching": True, "kv_blocks": enough}), trace)


@settings(max_examples=50, deadline=None)
@given(traces(id_tokens=4), st.integers(1, 12))
def test_same_decisions_without_chunks(trace: pl.DataFrame, seqs: int) -> None:
    config = EngineConfig(
        kv_blocks=30, block_size=4, max_num_seqs=seqs, max_num_batched_tokens=100,
        enable_chunked_prefill=False, enable_prefix_caching=False,
    )  # fmt: skip
    assert_same_decisions(config, trace)
