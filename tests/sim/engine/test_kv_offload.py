"""KV blocks in tiers behind the prefix cache: exact whether leapt or stepped, nothing lost, and what each rule does."""

from typing import Any

import polars as pl
import pytest
from engine_workloads import BURST, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from offload_workloads import offloaded, offloading
from polars.testing import assert_frame_equal
from session_workloads import BLOCK, conversations
from step_sums import single_steps

from ground.errors import UserError
from ground.spec import check_spec
from sim.engine.block_pool import Hit
from sim.engine.config import EngineConfig
from sim.engine.offload.evicting_pool import EvictingPool
from sim.engine.offload.settings import DiskSettings, KvOffloadSettings, PrefetchSettings
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler
from sim.fleet.fleet import Fleet, FleetRun
from sim.results.diagnosis.diagnosis import diagnose
from sim.study.deployment import deploy
from sim.study.scenario import Scenario
from sim.study.simulate import simulate
from traces.reuse import prefix_reuse
from traces.table import Trace


@settings(max_examples=60, deadline=None)
@given(conversations(), offloading(), st.booleans())
def test_leap_equals_step(trace: pl.DataFrame, config: EngineConfig, law: bool) -> None:
    leapt, stepped = (offloaded(trace, config, leap=leap, law=law).run() for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert single_steps(leapt.steps) == single_steps(stepped.steps)
    assert_frame_equal(copies(leapt), copies(stepped), check_exact=True)


def copies(result: FleetRun) -> pl.DataFrame:
    events = result.events
    return events.filter(pl.col("kind").str.starts_with("kv_") | (pl.col("kind") == "copy"))


@settings(max_examples=40, deadline=None)
@given(conversations(), offloading())
def test_all_finish_and_give_back_what_they_held(trace: pl.DataFrame, config: EngineConfig) -> None:
    """Blocks of the device, of both tiers, and what is said of them."""
    fleet = offloaded(trace, config)
    scheduler = scheduler_of(fleet)
    result = fleet.run()
    assert result.requests["status"].to_list() == ["finished"] * len(trace)
    assert (result.steps["kv_blocks"] <= config.kv_blocks).all()
    offload = scheduler.offload
    assert scheduler.pool.free == config.kv_blocks
    for tier in filter(None, (offload.host, offload.disk)):
        assert tier.unpinned == tier.total
        assert all(tier.can_read(name) for name in tier.names)
        places = [tier.place_of(name) for name in tier.names]
        assert len(set(places)) == len(places) == tier.used <= tier.total
    # Each prompt token was computed, or found on the device, or fetched; and computed again only after a preemption.
    if not result.requests["preemptions"].sum():
        computed = single_steps(result.steps)["prefilled"]
        assert computed == trace["prompt_tokens"].sum() - result.requests["cached_tokens"].sum()
    waited = copies(result).filter(pl.col("kind") == "kv_fetch")
    assert (waited["amount"] * BLOCK <= trace["prompt_tokens"].max()).all()


def scheduler_of(fleet: Fleet) -> Any:
    return fleet.service.members[0].engine.scheduler  # type: ignore[attr-defined]


@settings(max_examples=30, deadline=None)
@given(traces(), st.sampled_from([None, DiskSettings(blocks=10_000, read_bandwidth=1e4, write_bandwidth=1e4)]))
def test_a_tier_for_all_finds_what_an_infinite_cache_finds(trace: pl.DataFrame, disk: DiskSettings | None) -> None:
    """The requests come one at a time, so that each finds all before it (and none ends on a block's edge, as the last
    token is always computed)."""
    trace = trace.with_columns(
        arrival=10.0 * pl.col("request_id"),
        prompt_tokens=pl.col("prompt_tokens") + (pl.col("prompt_tokens") % 4 == 0).cast(pl.Int64),
    )
    config = EngineConfig(
        kv_blocks=25,
        block_size=4,
        kv_offload=KvOffloadSettings(host_blocks=10_000 if disk is None else 25, disk=disk),
    )
    found = offloaded(trace, config).run().requests["cached_tokens"].sum()
    reuse = prefix_reuse(Trace(trace, "test", "test", len(trace)))
    assert reuse is not None
    assert found == reuse.hit_tokens


# What each rule does, by hand. A step takes 10 ms and 0.1 ms a token; a block takes 0.3 ms out and 0.2 ms in.


def turns(*rows: dict[str, Any]) -> pl.DataFrame:
    """Requests of 40 prompt tokens, of the same ten blocks where they have the same `group`."""
    filled = [
        {
            "request_id": number,
            "arrival": row.get("arrival"),
            "parent": row.get("parent"),
            "think_time": row.get("think_time"),
            "session": row.get("session"),
            "prompt_tokens": row.get("prompt", 41),
            "output_tokens": row.get("output", 2),
            "prefix_ids": [100 * row["group"] + i for i in range(row.get("prompt", 41) // 4)],
            "prefix_block_tokens": 4,
        }
        for number, row in enumerate(rows)
    ]
    types = {"arrival": pl.Float64, "parent": pl.Int64, "think_time": pl.Float64, "session": pl.String}
    return pl.DataFrame(filled, schema_overrides=types | {"prefix_ids": pl.List(pl.Int64)})


def engine(**tiers: Any) -> EngineConfig:
    return EngineConfig(kv_blocks=12, block_size=4, kv_offload=KvOffloadSettings(**{"host_blocks": 100} | tiers))


def test_a_prompt_waits_for_its_blocks_and_not_for_those_that_the_device_has() -> None:
    trace = turns({"arrival": 0.0, "group": 1}, {"arrival": 1.0, "group": 2}, {"arrival": 2.0, "group": 1})
    result = offloaded(trace, engine()).run()
    fetched = copies(result).filter(pl.col("kind") == "kv_fetch")
    # The second request needed 11 of 12 blocks: of the first's ten nine were evicted, from the end.
    assert fetched.select("request_id", "amount", "detail").rows() == [(2, 9, "from host")]
    assert result.requests["cached_tokens"].to_list() == [0, 0, 40]
    assert result.requests["first_scheduled"][2] == pytest.approx(2.0 + 9 * 0.000_2)
    assert "missed" not in result.events["kind"], "what is fetched is not computed again"


def test_what_ends_is_held_until_it_has_been_written() -> None:
    """So the next prompt, which comes as the first ends, waits for the write; not so where nothing is written."""
    trace = turns({"arrival": 0.0, "group": 1, "output": 1}, {"arrival": 0.001, "group": 2})
    started = {}
    for write in ("on_release", "on_preemption"):
        started[write] = offloaded(trace, engine(write=write)).run().requests["first_scheduled"][1]
    end = 0.01 + 41 * 0.000_1
    assert started["on_preemption"] == pytest.approx(end)
    assert started["on_release"] == pytest.approx(end + 10 * 0.000_3)


def test_a_block_that_is_evicted_goes_out_before_the_step_that_overwrites_it() -> None:
    trace = turns({"arrival": 0.0, "group": 1}, {"arrival": 1.0, "group": 2}, {"arrival": 2.0, "group": 1})
    result = offloaded(trace, engine(write="on_eviction")).run()
    waited = copies(result).filter(pl.col("kind") == "copy")
    assert waited.select("time", "amount", "detail").row(0) == (1.0, 9, "out")
    step = 0.01 + 41 * 0.000_1
    assert result.requests["first_token"][1] == pytest.approx(1.0 + 9 * 0.000_3 + step)
    assert result.requests["cached_tokens"].to_list() == [0, 0, 40]


def test_fetching_loses_where_the_copies_take_longer_than_the_prompt() -> None:
    """A hundred blocks a second from disk: 0.1 s for what a step computes in 15 ms. `cheaper` sees it."""
    disk = DiskSettings(blocks=1000, read_bandwidth=100.0, write_bandwidth=1e4)
    trace = turns(*({"arrival": float(number), "group": number % 3} for number in range(9)))
    times = {}
    for fetch in ("always", "cheaper"):
        config = engine(host_blocks=12, disk=disk, fetch=fetch)
        result = offloaded(trace, config).run().requests
        times[fetch] = (result["first_token"] - result["arrival"]).to_list()
    recomputed = 0.01 + 41 * 0.000_1
    assert times["always"][-1] > 0.09
    assert times["cheaper"][-1] == pytest.approx(recomputed, abs=0.005)
    assert sum(times["cheaper"]) < sum(times["always"])


def test_an_idle_session_is_written_after_its_time_and_not_before_its_next_turn() -> None:
    trace = turns(
        {"arrival": 0.0, "group": 1, "session": "a"},
        {"arrival": 0.3, "group": 1, "session": "a"},
        {"arrival": 0.4, "group": 2},
    )
    result = offloaded(trace, engine(write="on_idle", idle_after=0.5)).run()
    written = copies(result).filter(pl.col("kind") == "kv_write")
    # Of the second turn alone; the request of no session took all but one of its blocks first.
    assert written["time"].to_list() == pytest.approx([result.requests["finish"][1] + 0.5])
    assert written["amount"].to_list() == [1]


@pytest.mark.parametrize("leap", [True, False])
def test_what_is_due_while_a_step_runs_is_done_when_the_next_is_scheduled(leap: bool) -> None:
    """Though nobody waits, and the step after it was scheduled before: the answer that decodes then is one leap."""
    trace = turns(
        {"arrival": 0.0, "group": 1, "session": "a", "output": 1},
        {"arrival": 0.1, "group": 2, "output": 100},
    )
    config = engine(write="on_idle", idle_after=0.095).model_copy(update={"async_scheduling": True, "kv_blocks": 60})
    result = offloaded(trace, config, leap=leap).run()
    prefill = 0.01 + 41 * 0.000_1
    assert result.requests["finish"][0] == pytest.approx(prefill)
    assert 0.1 < prefill + 0.095 < 0.1 + prefill, "due in the middle of the second prompt's step"
    assert copies(result)["time"].to_list() == pytest.approx([0.1 + prefill])


def test_a_prefetch_comes_before_the_next_turn_that_it_expects() -> None:
    """Turns come a second after the answer, as the first two have shown; in between others take the blocks."""
    rows: list[dict[str, Any]] = [{"arrival": 0.0, "group": 1, "session": "a"}]
    for turn in range(1, 4):
        rows.append({"parent": len(rows) - 1 - (turn > 1), "think_time": 1.0 + 0.01 * turn, "group": 1, "session": "a"})
        rows.append({"arrival": 0.3 + 1.02 * turn, "group": 2})
    trace = turns(*rows)
    plain, ahead = (
        offloaded(trace, engine(prefetch=prefetch)).run()
        for prefetch in (None, PrefetchSettings(least_seen=1, quantile=0.9))
    )
    last = 5
    assert rows[last]["group"] == 1
    fetches = copies(ahead).filter(pl.col("kind") == "kv_fetch")
    assert fetches.filter(pl.col("request_id").is_null()).height > 0
    assert last in copies(plain).filter(pl.col("kind") == "kv_fetch")["request_id"].to_list()
    assert last not in fetches["request_id"].to_list()
    ttft = [run.requests["first_token"][last] - run.requests["arrival"][last] for run in (plain, ahead)]
    assert ttft[1] < ttft[0]


def test_two_who_want_the_same_blocks_fetch_them_once() -> None:
    others = ({"arrival": 0.1 * number, "group": number} for number in range(1, 5))
    same = [{"arrival": 2.0, "group": 1}, {"arrival": 2.0, "group": 1}]
    config = engine().model_copy(update={"kv_blocks": 24})
    result = offloaded(turns(*others, *same), config).run()
    fetched = copies(result).filter(pl.col("kind") == "kv_fetch")
    assert fetched["request_id"].to_list() == [4]
    assert result.requests["cached_tokens"].to_list() == [0, 0, 0, 0, 40, 40]


# Settings.

ENGINE = {"kv_blocks": 300, "host_bandwidth": 25e9, "kv_offload": {"host_blocks": 5000}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"enable_prefix_caching": False}, "kv_offload is given, and so is enable_prefix_caching false; expected one"),
        ({"session_retention": {}}, "kv_offload is given, and so is session_retention; expected one of them"),
        ({"pipeline_parallel": 2}, "kv_offload is given, and so is pipeline_parallel 2; expected one of them"),
        ({"batching": {"policy": "static"}}, "batching.policy is static and kv_offload is given; expected one of them"),
        ({"memory": {}}, "memory and kv_offload are both given; expected one"),
        ({"preemption": "auto"}, "preemption is auto, swap_blocks is 0 .* expected swap_blocks to copy to"),
        ({"kv_offload": {"host_blocks": 5, "write": "on_idle"}}, "idle_after is not given; expected the seconds"),
        ({"kv_offload": {"host_blocks": 5, "idle_after": 1.0}}, "idle_after is given and write is on_release"),
    ],
)
def test_what_does_not_go_together_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec(Scenario, BURST | {"engine": ENGINE | more}, "made")


def test_a_scenario_with_tiers_says_what_they_are_made_of() -> None:
    disk = {"blocks": 10_000, "read_bandwidth": 5e9, "write_bandwidth": 2e9}
    offload = {"host_blocks": 5000, "disk": disk, "write": "on_preemption"}
    run = simulate(check_spec(Scenario, BURST | {"engine": ENGINE | {"kv_offload": offload}}, "made"))
    said = {one.name: (one.value, one.unit) for one in run.assumptions if "offload" in one.name}
    block = 16 * 2 * 32 * 8 * 128 * 2  # tokens, K and V, layers, KV heads, head, bytes of Llama-3.1-8B
    assert said["engine.kv_offload.host"] == (5000 * block, "bytes")
    assert said["engine.kv_offload.disk"] == (10_000 * block, "bytes")
    assert said["engine.kv_offload.disk.read_bandwidth"] == (5e9, "bytes/s")
    assert run.requests["status"].to_list() == ["finished"] * 30
    assert run.scenario["engine"]["kv_offload"]["eviction"] == "lru"


def test_the_wait_for_a_fetch_is_told_from_other_queueing() -> None:
    turns_of_users = {
        "turns": {"distribution": "constant", "value": 3},
        "think_time": {"distribution": "constant", "value": 1.0},
    }
    synth = BURST["trace"]["synth"] | {"sessions": turns_of_users}
    scenario = check_spec(Scenario, BURST | {"trace": {"synth": synth}, "engine": ENGINE}, "made")
    run = simulate(scenario)
    found = diagnose(run, deploy(scenario).step_times, measured=False)
    waited = run.events.filter((pl.col("kind") == "kv_fetch") & pl.col("request_id").is_not_null())
    # What comes back after a preemption is part of that wait.
    before = waited.join(run.requests, on="request_id").filter(pl.col("time") <= pl.col("first_scheduled"))
    assert found.attributed["kv_fetch"].sum() == pytest.approx(before["seconds"].sum())
    assert 0 < len(before) < len(waited)
    assert run.metrics["kv_offload"]["fetched"] == 16 * waited["amount"].sum() > 0
    assert found.attributed["other"].abs().max() < 1e-9


def test_copies_that_nobody_measured_are_asked_for() -> None:
    without = {key: value for key, value in ENGINE.items() if key != "host_bandwidth"}
    with pytest.raises(UserError, match=r"kv_offload and weight_offload need; expected .* engine.host_bandwidth"):
        simulate(check_spec(Scenario, BURST | {"engine": without}, "made"))


@pytest.mark.parametrize(("bandwidth", "copied"), [(1e12, True), (1e8, False)])
def test_auto_preemption_takes_the_cheaper_way(bandwidth: float, copied: bool) -> None:
    """A link of 100 MB/s takes longer for a block than an H100 for its sixteen tokens; one of 1 TB/s does not."""
    found = {}
    for preemption in ("auto", "swap", "recompute"):
        own = {"kv_blocks": 300, "swap_blocks": 1000, "preemption": preemption, "host_bandwidth": bandwidth}
        run = simulate(check_spec(Scenario, BURST | {"engine": own}, "made"))
        assert run.metrics["preemptions"] > 0
        found[preemption] = run
    swaps = {name: run.events.filter(pl.col("kind") == "copy").height > 0 for name, run in found.items()}
    assert swaps == {"auto": copied, "swap": True, "recompute": False}
    same = "swap" if copied else "recompute"
    assert_frame_equal(found["auto"].requests, found[same].requests)


def test_what_a_leap_took_was_saved_and_is_not_saved_again() -> None:
    scheduler = Scheduler(engine(write="on_eviction", host_blocks=1))
    offload, pool = scheduler.offload, scheduler.pool
    assert offload is not None and isinstance(pool, EvictingPool)
    offload.host.make_place([7])
    offload.host.written([7])
    pool.evicted.append((7, 3))
    offload.tend(0.0, crowded=False)
    offload.host.make_place([9])  # now it has left the tier
    offload.host.written([9])
    plan = Plan(0)
    offload.planned(plan)
    assert not plan.swapped_out


@pytest.mark.parametrize(
    ("on_host", "fetch", "unsettled"), [(10, "always", False), (4, "always", True), (10, "cheaper", True)]
)
def test_who_is_refused_with_part_of_his_prefix_on_the_device_alone_may_need_less_soon(
    on_host: int, fetch: str, unsettled: bool
) -> None:
    """Once the device evicts the end of what it has, there may be nothing to fetch any more: so leaps stop."""
    scheduler = Scheduler(engine(fetch=fetch))
    offload = scheduler.offload
    assert offload is not None
    request = Request(0, 0.0, 41, 2, range(10), 4)
    scheduler.add(request)
    names = sorted({*range(on_host), 8, 9})
    offload.host.make_place(names)
    offload.host.written(names)
    offload.refused(request, Hit([], [], 0, 8 * 4))
    assert offload.unsettled == unsettled
    offload.tend(0.0, crowded=True)
    assert not offload.unsettled
