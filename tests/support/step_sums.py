"""What the steps of a run add up to, and that nothing of what came is lost in them."""

from itertools import pairwise

import polars as pl

from sim.engine.config import EngineConfig
from sim.fleet.fleet import FleetRun


def single_steps(steps: pl.DataFrame) -> dict[str, int]:
    """What must not depend on how steps are grouped."""
    return {
        "steps": int(steps["steps"].sum()),
        "decoded": int((steps["steps"] * steps["decode_seqs"]).sum()),
        "prefilled": int(steps["prefill_tokens"].sum()),
        "preempted": int(steps["preempted"].sum()),
    }


def check_that_nothing_is_lost(trace: pl.DataFrame, config: EngineConfig, result: FleetRun, engines: int = 1) -> None:
    """Of replicas of `engines` engines in lock-step: all finish, one thing after the other, within what an engine has,
    and each token is computed once if nobody was preempted."""
    requests, steps = result.requests, result.steps
    assert requests["status"].to_list() == ["finished"] * len(trace)
    for earlier, later in pairwise(("arrival", "first_scheduled", "first_token", "finish")):
        assert (requests[earlier] <= requests[later]).all()
    assert (steps["running"] <= engines * config.max_num_seqs).all()
    assert (steps["kv_blocks"] <= engines * config.kv_blocks).all()
    assert (steps["prefill_tokens"] + steps["decode_seqs"] <= engines * config.max_num_batched_tokens).all()
    for _, of_replica in steps.group_by("replica"):
        assert of_replica["kv_blocks"][-1] == 0
    # Every output token but the first of a prompt is decoded; what preemption threw away is computed again as prompt.
    if not requests["preemptions"].sum():
        done = single_steps(steps)
        assert done["decoded"] == int(trace["output_tokens"].sum()) - len(trace)
        assert done["prefilled"] == int(trace["prompt_tokens"].sum()) - int(requests["cached_tokens"].sum())
