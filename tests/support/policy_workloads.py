"""Random settings of the scheduler's policies, and traces with what their orders ask for."""

import math
from collections.abc import Callable
from typing import Any

import polars as pl
from engine_workloads import configs, traces
from hypothesis import strategies as st

from sim.engine.config import EngineConfig
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.scheduler import Scheduler

ORDERS = ["fcfs", "priority", "shortest_prompt", "earliest_deadline", "fair_share", "length_buckets"]


def changed(config: EngineConfig, **settings: Any) -> EngineConfig:
    """With other settings, checked as any."""
    return EngineConfig.model_validate(config.model_dump() | settings)


@st.composite
def policy_configs(draw: st.DrawFn, block_size: int | None = None, **fixed: Any) -> EngineConfig:
    """`fixed` settings, and any others."""
    config = draw(configs(block_size=block_size))
    order = fixed.get("scheduling_policy") or draw(st.sampled_from(ORDERS))
    drawn: dict[str, Any] = {
        "scheduling_policy": order,
        "ageing": draw(st.sampled_from([0.0, 100.0])) if order == "shortest_prompt" else None,
        "length_buckets": draw(st.sampled_from([None, (4, 20)])) if order == "length_buckets" else None,
        "prefill_policy": draw(st.sampled_from(["mixed", "prefill_first", "decode_first"])),
        "capacity_policy": draw(st.sampled_from(["max_utilization", "guaranteed_no_evict"])),
        "token_budget": None,
    }
    if draw(st.booleans()):
        minimum = draw(st.integers(config.max_num_seqs, config.max_num_batched_tokens))
        drawn["token_budget"] = {"tpot_target": draw(st.sampled_from([0.005, 0.0102, 0.0115, 1.0])), "minimum": minimum}
    drawn |= fixed
    if drawn["prefill_policy"] == "decode_first":
        drawn.setdefault("resume_below", draw(st.integers(0, 3)))
    return changed(config, **drawn)


@st.composite
def tenant_traces(draw: st.DrawFn, id_tokens: int = 4) -> pl.DataFrame:
    """Those of `traces`, of up to three tenants, with deadlines for some."""
    trace = draw(traces(id_tokens))
    count = len(trace)
    tenants = draw(st.lists(st.sampled_from([None, "a", "b"]), min_size=count, max_size=count))
    deadlines = draw(st.lists(st.sampled_from([None, 0.05, 0.2, 3.0]), min_size=count, max_size=count))
    return trace.with_columns(
        tenant=pl.Series(tenants, dtype=pl.String), deadline=pl.Series(deadlines, dtype=pl.Float64)
    )


def drive(
    config: EngineConfig,
    trace: pl.DataFrame,
    look: Callable[[Scheduler, Plan, float], None],
    kind: type[Scheduler] = Scheduler,
) -> None:
    """Serve a trace in steps of a second, twenty of which are one of the trace's; `look` at every plan."""
    scheduler = kind(config)
    due = [Request(**{**row, "arrival": row["arrival"] * 20}) for row in _rows(trace)]
    open_requests, now = len(due), 0.0
    while open_requests:
        while due and due[0].arrival <= now:
            scheduler.add(due.pop(0))
        plan = scheduler.schedule(now)
        if plan is not None:
            look(scheduler, plan, now)
            open_requests -= len(scheduler.finish(plan, now + 1.0))
        now += 1.0
        assert now < 20_000, "somebody starves"


def _rows(trace: pl.DataFrame) -> list[dict[str, Any]]:
    if "deadline" in trace.columns:
        trace = trace.with_columns(pl.col("deadline").fill_null(math.inf))
    return trace.to_dicts()
