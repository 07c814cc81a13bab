"""Prefill and decode pools: nothing is lost or computed twice, and every byte moved is a block that was wanted."""

from typing import Any

import polars as pl
import pytest
from disaggregated_runs import BLOCK_BYTES, LAYERS, fleet, handovers, run
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from sim.engine.config import EngineConfig
from sim.fleet.disaggregation import Disaggregation
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun

ROOMY = EngineConfig(kv_blocks=4000, block_size=4, max_num_seqs=64, max_num_batched_tokens=512)


def kinds_of(run: FleetRun) -> dict[str, pl.DataFrame]:
    return {kind: run.events.filter(pl.col("kind") == kind) for kind in ("prefilled", "kv_transfer", "joined")}


def of_pool(table: pl.DataFrame, result: FleetRun, pool: str) -> pl.DataFrame:
    return table.join(result.replicas.filter(pl.col("pool") == pool).select("replica"), on="replica", how="semi")


@settings(max_examples=75, deadline=None)
@given(configs(block_size=4), configs(block_size=4), traces(), handovers())
def test_every_request_ends_once_and_leaves_nothing_behind(
    prefill: EngineConfig, decode: EngineConfig, trace: pl.DataFrame, chosen: dict[str, Any]
) -> None:
    made = fleet(trace, chosen, prefill, decode)
    result = made.run()
    assert result.requests["status"].to_list() == ["finished"] * len(trace)
    assert (result.requests["first_token"] >= result.requests["first_scheduled"]).all()
    assert (result.requests["finish"] >= result.requests["first_token"]).all()
    service = made.service
    assert isinstance(service, Disaggregation) and not service._under_way
    for replica in (*service.prefill.members, *service.decode.members):
        scheduler = replica.engine.scheduler
        assert not replica.outstanding and not scheduler.blocks_held
        assert not scheduler.running_count and not scheduler.waiting_count and not scheduler.remote.kept

    events = kinds_of(result)
    moved = events["kv_transfer"]
    assert moved["request_id"].is_unique().all() and events["joined"]["request_id"].is_unique().all()
    assert sorted(moved["request_id"]) == sorted(events["joined"]["request_id"])
    assert (moved["amount"] % BLOCK_BYTES == 0).all()
    asked = trace.filter(pl.col("request_id").is_in(moved["request_id"].to_list())).sort("request_id")
    most = -(-asked["prompt_tokens"] // 4) * BLOCK_BYTES
    assert (moved.sort("request_id")["amount"] <= most).all() and (moved["amount"] > 0).all()
    carried = sum(service.network.carried(port.out) for port in service._ports.values())
    assert carried == pytest.approx(moved["amount"].sum())
    assert carried == pytest.approx(sum(service.network.carried(port.into) for port in service._ports.values()))


@settings(max_examples=60, deadline=None)
@given(traces(), handovers(min_prompt=0))
def test_the_decode_pool_computes_no_prompt_that_was_sent(trace: pl.DataFrame, chosen: dict[str, Any]) -> None:
    result = run(trace, chosen, ROOMY, ROOMY)
    prefilled, decoded = (of_pool(result.steps, result, pool) for pool in ("prefill", "decode"))
    assert decoded["prefill_tokens"].sum() == 0
    prompts = trace["prompt_tokens"].sum() - result.requests["cached_tokens"].sum()
    assert prefilled["prefill_tokens"].sum() == prompts
    assert prefilled["decode_seqs"].sum() == 0
    tokens = int((decoded["decode_seqs"].cast(pl.Int64) * decoded["steps"]).sum())
    # The first token is decoded too, from the last prompt token, unless it comes with the blocks.
    assert tokens == trace["output_tokens"].sum() - (len(trace) if chosen["first_token"] == "prefill" else 0)


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), configs(block_size=4), traces(), handovers(), st.booleans())
def test_leap_equals_step(
    prefill: EngineConfig, decode: EngineConfig, trace: pl.DataFrame, chosen: dict[str, Any], has_law: bool
) -> None:
    times = LinearStepTimes(has_law=has_law)
    leapt, stepped = (run(trace, chosen, prefill, decode, times=times, leap=leap) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    for kind, table in kinds_of(leapt).items():
        assert_frame_equal(table, kinds_of(stepped)[kind], check_exact=True)


@settings(max_examples=60, deadline=None)
@given(traces())
def test_over_an_unlimited_link_the_first_token_is_that_of_a_fleet_that_only_prefills(trace: pl.DataFrame) -> None:
    """It comes as soon as the decode engine, which is equal, has formed a step: one of its steps later at most."""
    chosen = {"prefill": {}, "decode": {}, "link": {"bandwidth": 1e18}, "first_token": "prefill"}
    result = run(trace, chosen, ROOMY, ROOMY)
    alone = equal_replicas(trace.with_columns(output_tokens=pl.lit(1)), ROOMY, LinearStepTimes()).run()
    assert_frame_equal(result.requests.select("first_scheduled"), alone.requests.select("first_scheduled"))
    longest = ((result.steps["end"] - result.steps["start"]) / result.steps["steps"]).to_numpy().max() * 1.01
    later = (result.requests["ttft"] - alone.requests["ttft"]).to_numpy()
    assert (later >= -1e-9).all() and (later <= longest + 1e-9).all()
    single = trace["output_tokens"].to_numpy() == 1
    assert (later[single] == 0).all()


def test_the_link_is_shared_and_layers_hide_it() -> None:
    trace = pl.DataFrame(
        {"request_id": [0, 1], "arrival": [0.0, 0.0], "prompt_tokens": [40, 40], "output_tokens": [5, 5]}
    )
    chosen: dict[str, Any] = {"prefill": {"replicas": 2}, "decode": {}, "link": {"bandwidth": 1e4, "latency": 0.5}}
    times = LinearStepTimes(base=1.0, per_token=0.0, per_kv=0.0)
    moved = kinds_of(run(trace, chosen, ROOMY, ROOMY, times=times))["kv_transfer"]
    # Ten blocks each, both into one replica: 20,000 bytes at 10,000 bytes/s, and once the latency.
    assert moved["time"].to_list() == [1.0, 1.0] and moved["seconds"].to_list() == pytest.approx([2.5, 2.5])
    apart = run(trace, {**chosen, "decode": {"replicas": 2}}, ROOMY, ROOMY, times=times)
    assert kinds_of(apart)["kv_transfer"]["seconds"].to_list() == pytest.approx([1.5, 1.5])
    hidden = run(trace, {**chosen, "decode": {"replicas": 2}, "transfer": "layerwise"}, ROOMY, ROOMY, times=times)
    # Three of four layers went while the prompt was computed; the last one has a quarter of the bytes to go.
    assert LAYERS == 4
    assert kinds_of(hidden)["kv_transfer"]["seconds"].to_list() == pytest.approx([0.75, 0.75])


def test_a_prefix_that_the_decode_replica_has_is_not_sent_again() -> None:
    ids = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 5, 6, 7, 8, 99, 100]]
    trace = pl.DataFrame(
        {"request_id": [0, 1], "arrival": [0.0, 100.0], "prompt_tokens": [40, 40], "output_tokens": [5, 5]}
        | {"prefix_ids": ids, "prefix_block_tokens": [4, 4]}
    )
    moved = kinds_of(run(trace, {"prefill": {}, "decode": {}, "link": {"bandwidth": 1e6}}, ROOMY, ROOMY))["kv_transfer"]
    assert moved["amount"].to_list() == [10 * BLOCK_BYTES, 2 * BLOCK_BYTES]


@pytest.mark.parametrize(("counts", "sent"), [("prompt", [0, 2, 3]), ("uncached", [0, 2])])
def test_short_prompts_stay(counts: str, sent: list[int]) -> None:
    ids = [list(range(20)), [50], list(range(100, 120)), [*range(18), 900, 901]]
    trace = pl.DataFrame(
        {"request_id": range(4), "arrival": [0.0, 50.0, 100.0, 150.0], "prompt_tokens": [80, 4, 80, 80]}
        | {"output_tokens": [5] * 4, "prefix_ids": ids, "prefix_block_tokens": [4] * 4}
    )
    chosen = {"prefill": {}, "decode": {}, "link": {"bandwidth": 1e6}, "min_prompt": 20, "min_prompt_counts": counts}
    assert kinds_of(run(trace, chosen, ROOMY, ROOMY))["kv_transfer"]["request_id"].to_list() == sent
