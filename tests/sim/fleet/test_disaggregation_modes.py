"""Prefill and decode pools whose engines keep their KV cache in other ways, or step together."""

from typing import Any

import polars as pl
import pytest
from disaggregated_runs import fleet, handovers
from engine_workloads import traces
from group_step_times import GroupStepTimes
from hypothesis import HealthCheck, given, settings
from polars.testing import assert_frame_equal

from sim.engine.config import EngineConfig
from sim.engine.lockstep import LockStepScheduler
from sim.engine.session_retention import SessionRetentionSettings
from sim.fleet.disaggregation import Disaggregation

COMMON: dict[str, Any] = {
    "kv_blocks": 40,
    "block_size": 4,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 32,
}
MODES: dict[str, dict[str, Any]] = {
    "kept for sessions": {"session_retention": SessionRetentionSettings(ttl=1.0)},
    "contiguous": {"kv_reservation": "oracle", "enable_prefix_caching": False},
    "swapped": {"swap_blocks": 20},
    "in lock-step": {"data_parallel": 2},
    "in lock-step, ahead": {"data_parallel": 2, "async_scheduling": True},
    "urgent first, ahead": {"scheduling_policy": "priority", "async_scheduling": True},
}


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("mode", sorted(MODES))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traces(), handovers())
def test_nothing_is_lost_and_leap_equals_step(
    mode: str, side: str, trace: pl.DataFrame, chosen: dict[str, Any]
) -> None:
    trace = trace.with_columns(session=(pl.col("request_id") % 5).cast(pl.String))
    plain, other = EngineConfig(**COMMON), EngineConfig(**COMMON, **MODES[mode])
    engines = (other, plain) if side == "prefill" else (plain, other)
    tables = []
    for leap in (True, False):
        made = fleet(trace, chosen, *engines, times=GroupStepTimes(), leap=leap)
        result = made.run()
        assert result.requests["status"].to_list() == ["finished"] * len(trace)
        service = made.service
        assert isinstance(service, Disaggregation) and not service._under_way
        for replica in (*service.prefill.members, *service.decode.members):
            scheduler = replica.engine.scheduler
            assert not replica.outstanding and not scheduler.running_count and not scheduler.waiting_count
            schedulers = scheduler._schedulers if isinstance(scheduler, LockStepScheduler) else [scheduler]
            assert not any(one.remote.kept or one.blocks_held for one in schedulers)
        tables.append(result.requests)
    assert_frame_equal(*tables, check_exact=True)
