"""What the events table says beside the steps: who was preempted, and which tokens were computed again and why."""

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from group_step_times import GroupStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.results.recorder import EventRecorder
from sim.results.tables import EVENTS


def total(events: pl.DataFrame, kind: str) -> int:
    return int(events.filter(pl.col("kind") == kind)["amount"].sum())


@settings(max_examples=75, deadline=None)
@given(configs(block_size=4), traces())
def test_every_token_is_computed_once_but_for_those_that_are_told(config: EngineConfig, trace: pl.DataFrame) -> None:
    result = equal_replicas(trace, config, LinearStepTimes()).run()
    steps, requests, events = result.steps, result.requests, result.events
    computed = int((steps["steps"] * steps["decode_seqs"]).sum()) + int(steps["prefill_tokens"].sum())
    needed = int((requests["prompt_tokens"] + requests["output_tokens"] - 1 - requests["cached_tokens"]).sum())
    again = total(events, "recomputed")
    if config.enable_prefix_caching and requests["preemptions"].sum():
        # Who is admitted again may find what others have computed meanwhile, beyond what he had.
        assert computed <= needed + again
    else:
        assert computed == needed + again
    assert total(events, "missed") <= int(steps["prefill_tokens"].sum())
    if not config.enable_prefix_caching:
        assert total(events, "missed") == 0


@settings(max_examples=75, deadline=None)
@given(configs(block_size=4), traces())
def test_who_is_preempted_waits_until_he_is_admitted_again(config: EngineConfig, trace: pl.DataFrame) -> None:
    result = equal_replicas(trace, config, LinearStepTimes()).run()
    finish = dict(result.requests.select("request_id", "finish").iter_rows())
    for (request_id,), events in result.events.filter(pl.col("request_id").is_not_null()).group_by("request_id"):
        kinds = events["kind"].to_list()
        assert kinds == ["preempted", "resumed"] * (len(kinds) // 2)
        assert events["time"].is_sorted()
        assert events["time"][-1] <= finish[request_id]
    told = result.events.filter(pl.col("kind") == "preempted")
    assert len(told) <= int(result.requests["preemptions"].sum())  # one with its last token under way does not wait


@settings(max_examples=75, deadline=None)
@given(configs(block_size=4), traces(), st.integers(1, 3), st.integers(24, 30), st.booleans())
def test_copies_take_what_their_events_say(
    config: EngineConfig, trace: pl.DataFrame, engines: int, blocks: int, leap: bool
) -> None:
    """One engine, or several in lock-step, whose steps take the same time but for the copies."""
    update = {"kv_blocks": blocks, "swap_blocks": 1000, "enable_prefix_caching": False, "data_parallel": engines}
    times = GroupStepTimes(base=0.1, per_token=0.0, per_kv=0.0, per_shared_token=0.0)
    result = equal_replicas(trace, config.model_copy(update=update), times, leap=leap).run()
    copies = result.events.filter(pl.col("kind") == "copy")
    assert (copies["seconds"] > 0).all()
    seconds = dict(copies.select("time", "seconds").iter_rows())
    for row in result.steps.iter_rows(named=True):
        # A step that only preempts: one engine asks this law, which has no idle step, and a group does not ask.
        computes = row["prefill_tokens"] or row["decode_seqs"] or engines == 1
        computing = 0.1 * row["steps"] if computes else 0.0
        assert row["end"] - row["start"] == pytest.approx(computing + seconds.pop(row["start"], 0.0), abs=1e-9)
    assert not seconds


def test_engines_in_lock_step_copy_at_the_same_time() -> None:
    """Each has two requests that need 25 blocks and more, and swaps one of them out with 48 tokens computed."""
    columns = {"arrival": [0.0] * 4, "prompt_tokens": [30] * 4, "output_tokens": [40] * 4}
    trace = pl.DataFrame({"request_id": range(4), **columns})
    config = EngineConfig(
        kv_blocks=25, block_size=4, enable_prefix_caching=False, swap_blocks=100, data_parallel=2
    )  # fmt: skip
    events = equal_replicas(trace, config, GroupStepTimes()).run().events.filter(pl.col("kind") == "copy")
    assert events["amount"].to_list() == [24, 24]
    assert events["seconds"].to_list() == pytest.approx([12 * 0.000_3, 12 * 0.000_2])


def trace_of(prompts: list[list[int]]) -> pl.DataFrame:
    """Requests one after the other, each of whole blocks of 4 tokens and one token more."""
    count = len(prompts)
    return pl.DataFrame(
        {
            "request_id": range(count),
            "arrival": [10.0 * i for i in range(count)],
            "prompt_tokens": [4 * len(ids) + 1 for ids in prompts],
            "output_tokens": [1] * count,
            "prefix_ids": prompts,
            "prefix_block_tokens": [4] * count,
        }
    )


def missed(prompts: list[list[int]], blocks: int) -> list[tuple[float, int]]:
    config = EngineConfig(kv_blocks=blocks, block_size=4)
    result = equal_replicas(trace_of(prompts), config, LinearStepTimes()).run()
    return result.events.filter(pl.col("kind") == "missed").select("time", "amount").rows()


def test_a_prefix_that_was_evicted_is_missed() -> None:
    prompts = [[1, 2, 3], [11, 12, 13, 14], [1, 2, 3, 4]]
    assert missed(prompts, blocks=100) == []
    # Six blocks: the second request takes the two free ones, and evicts from the end of the first one's prefix.
    assert missed(prompts, blocks=6) == [(20.0, 8)]


def test_a_prefix_that_nobody_had_is_not_missed() -> None:
    assert missed([[1, 2], [11, 12, 13, 14], [21, 22], [31, 32, 33]], blocks=6) == []


def test_no_events_make_an_empty_table() -> None:
    table = EventRecorder().take_table()
    assert (len(table), dict(table.schema)) == (0, EVENTS)


def test_events_come_in_order_of_time_and_keep_what_they_were_told() -> None:
    recorder = EventRecorder()
    recorder.append(2.0, 1, "graph", seconds=0.25, amount=7, detail="512")
    recorder.append(2.0, 0, "preempted", request_id=0, amount=0)
    recorder.append(1.0, 1, "restart", seconds=0.0)
    assert recorder.take_table().rows() == [
        (1.0, 1, "restart", None, 0.0, None, None),
        (2.0, 0, "preempted", 0, None, 0, None),
        (2.0, 1, "graph", None, 0.25, 7, "512"),
    ]
    assert len(recorder.take_table()) == 0
