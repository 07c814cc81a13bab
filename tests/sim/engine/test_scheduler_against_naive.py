"""The counting scheduler decides what a scheduler that visits everything decides."""

from collections.abc import Sequence

import polars as pl
from engine_workloads import configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_scheduler import NaiveRequest, NaiveScheduler
from session_workloads import conversations, retentions

from sim.engine.config import EngineConfig
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.engine.session_retention import SessionRetentionSettings


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
    if ours.config.kv_reservation == "paged":
        assert ours.pool.free == len(theirs.queue)
    else:
        reserved = sum(owner is not None for owner in theirs.slots)
        assert ours.pool.held == -(-reserved // ours.config.block_size)
    assert ours.swap.free == theirs.host


def assert_same_decisions(config: EngineConfig, trace: pl.DataFrame, aborts: Sequence[tuple[float, int]] = ()) -> None:
    """Run both step by step, one second a step, with arrivals at twenty times their speed.

    `aborts`: (seconds after it was added, request id)."""
    ours, theirs = Scheduler(config), NaiveScheduler(config)
    due = [
        (
            row["arrival"] * 20,
            Request(**row),
            NaiveRequest(
                row["request_id"], row["arrival"], row["prompt_tokens"], row["output_tokens"],
                tuple(row["prefix_ids"][: row["prompt_tokens"] // config.block_size]), row["priority"],
                session=row.get("session"), adapter=row.get("adapter"),
            ),
        )
        for row in trace.iter_rows(named=True)
    ]  # fmt: skip
    pairs = [(mine, naive) for _, mine, naive in due]
    leaving = sorted((due[number][0] + after, number) for after, number in aborts if number < len(due))
    gone: set[int] = set()

    def abort_those_who_go() -> None:
        """When a step has ended: the one that has advanced, if any, is `running`."""
        for time, number in list(leaving):
            mine, naive = pairs[number]
            if time > now or number >= len(pairs) - len(due):
                continue
            leaving.remove((time, number))
            if number in gone or naive.finish is not None:
                continue
            gone.add(number)
            if not ours.withdraw(mine):
                ours.abort(mine, running[0] if running else None, now)
            theirs.abort(naive, running[1] if running else [], now)

    now = 0.0
    running: tuple[Plan, list[tuple[NaiveRequest, bool]]] | None = (
        None  # the step that runs while the next one is scheduled
    )
    while any(naive.finish is None for number, (_, naive) in enumerate(pairs) if number not in gone):
        while due and due[0][0] <= now:
            _, mine, naive = due.pop(0)
            ours.add(mine)
            theirs.add(naive)
        abort_those_who_go()
        scheduled = None
        plan = ours.schedule(now)
        granted = theirs.schedule(now)
        if plan is None:
            assert not granted
            if running is None:
                now = due[0][0] if due else now
                continue
        else:
            assert_same_step(ours, theirs, plan, granted)
            ours.advance(plan)
            scheduled = (plan, theirs.advance(granted))
        if not config.async_scheduling:
            running, scheduled = scheduled, None
        now += 1.0
        assert now < 20_000, "they live in lock"
        if not config.async_scheduling:
            abort_those_who_go()
        if running:
            ours.complete(running[0], now)
            theirs.complete(running[1], now)
        running = scheduled
    assert ours.swap.free == config.swap_blocks
    if ours.retention is not None:
        assert [(gone.session, gone.reason) for gone in ours.retention._given_up] == theirs.given_up
        assert ours.retention.idle == [turn.session for turn, _ in theirs.idle]
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


leaving_early = st.lists(st.tuples(st.floats(0.0, 40.0), st.integers(0, 29)), max_size=15)


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(id_tokens=4), leaving_early)
def test_same_decisions_where_clients_go(
    config: EngineConfig, trace: pl.DataFrame, aborts: list[tuple[float, int]]
) -> None:
    assert_same_decisions(config.model_copy(update={"enable_prefix_caching": False}), trace, aborts)


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(id_tokens=4), st.integers(0, 60), leaving_early)
def test_same_hits_where_clients_go(
    config: EngineConfig, trace: pl.DataFrame, spare: int, aborts: list[tuple[float, int]]
) -> None:
    enough = config.max_num_seqs * 24 + spare
    update = {"enable_prefix_caching": True, "kv_blocks": enough}
    assert_same_decisions(config.model_copy(update=update), trace, aborts)


@settings(max_examples=150, deadline=None)
@given(configs(block_size=4), traces(id_tokens=4), st.integers(0, 60))
def test_same_decisions_and_hits(config: EngineConfig, trace: pl.DataFrame, spare: int) -> None:
    """With blocks for all who can run at once nobody is preempted, while the cache still has to evict."""
    enough = config.max_num_seqs * 24 + spare
    assert_same_decisions(config.model_copy(update={"enable_prefix_caching": True, "kv_blocks": enough}), trace)


@settings(max_examples=200, deadline=None)
@given(configs(block_size=4), conversations(closed_loop=False), retentions, st.integers(0, 40), leaving_early)
def test_the_same_sessions_are_kept_and_given_up(
    config: EngineConfig,
    trace: pl.DataFrame,
    retention: SessionRetentionSettings,
    spare: int,
    aborts: list[tuple[float, int]],
) -> None:
    """Times are twenty times those of the trace, which the time to live follows."""
    kept = retention.model_copy(update={"ttl": retention.ttl and retention.ttl * 20})
    seats = min(config.max_num_seqs, 2)  # few, so that idle sessions are in the way of those who run
    update = {"max_num_seqs": seats, "kv_blocks": seats * 24 + spare, "session_retention": kept}
    update |= {"enable_prefix_caching": True}
    names = ["request_id", "arrival", "prompt_tokens", "output_tokens", "prefix_ids", "prefix_block_tokens", "priority"]
    # What is known of the output is cached by name here, and by no name there.
    named = pl.col("prefix_ids").list.head(pl.col("prompt_tokens") // 4)
    assert_same_decisions(
        config.model_copy(update=update), trace.with_columns(prefix_ids=named).select(*names, "session"), aborts
    )


@settings(max_examples=100, deadline=None)
@given(
    configs(block_size=4),
    traces(id_tokens=4),
    st.sampled_from(["oracle", "pow2", "max"]),
    st.integers(31, 80),
    leaving_early,
)
def test_the_same_ranges_are_reserved(
    config: EngineConfig, trace: pl.DataFrame, policy: str, blocks: int, aborts: list[tuple[float, int]]
) -> None:
    update = {"kv_reservation": policy, "max_model_len": 100, "kv_blocks": blocks, "swap_blocks": 0}
    assert_same_decisions(config.model_copy(update=update | {"enable_prefix_caching": False}), trace, aborts)


@settings(max_examples=50, deadline=None)
@given(traces(id_tokens=4), st.integers(1, 12))
def test_same_decisions_without_chunks(trace: pl.DataFrame, seqs: int) -> None:
    config = EngineConfig(
        kv_blocks=30, block_size=4, max_num_seqs=seqs, max_num_batched_tokens=100,
        enable_chunked_prefill=False, enable_prefix_caching=False,
    )  # fmt: skip
    assert_same_decisions(config, trace)


@settings(max_examples=200, deadline=None)
@given(
    configs(block_size=4),
    traces(id_tokens=4),
    st.integers(1, 4),
    st.lists(st.none() | st.sampled_from("abcdef"), min_size=30, max_size=30),
    leaving_early,
)
def test_the_same_adapters_run_together(
    config: EngineConfig,
    trace: pl.DataFrame,
    limit: int,
    adapters: list[str | None],
    aborts: list[tuple[float, int]],
) -> None:
    update = {"max_loras": limit, "enable_prefix_caching": False}
    named = trace.with_columns(adapter=pl.Series(adapters[: len(trace)], dtype=pl.String))
    assert_same_decisions(config.model_copy(update=update), named, aborts)
