"""Turns of a conversation: each is sent when its parent has been answered and thought over, or rejected."""

import polars as pl
import pytest
from engine_workloads import LinearStepTimes
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.routers import ROUTERS
from traces.synth import SynthSpec, generate


def conversations(seed: int, think: float, context_limit: int | None = None) -> pl.DataFrame:
    spec = SynthSpec.model_validate(
        {
            "requests": 60,
            "arrivals": {"process": "poisson", "rate": 3},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 1, "high": 40},
                "output": {"distribution": "uniform", "low": 1, "high": 30},
            },
            "sessions": {
                "turns": {"distribution": "geometric", "mean": 4},
                "think_time": {"distribution": "exponential", "mean": think},
                "context_limit": context_limit,
            },
        }
    )
    return generate(spec, seed).requests


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(0.001, 5),
    st.integers(1, 3),
    st.sampled_from(sorted(ROUTERS)),
    st.booleans(),
    st.integers(20, 400),
)
def test_a_turn_starts_exactly_when_its_parent_is_over_and_thought_over(
    seed: int, think: float, replicas: int, router: str, leap: bool, longest: int
) -> None:
    trace = conversations(seed, think)
    config = EngineConfig(
        kv_blocks=100, block_size=16, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=longest
    )
    result = (
        equal_replicas(trace, config, LinearStepTimes(), replicas=replicas, router=router, leap=leap).run().requests
    )
    rejected = trace["prompt_tokens"] + trace["output_tokens"] > longest
    assert result["status"].to_list() == ["rejected" if over else "finished" for over in rejected]
    assert result.filter(rejected)["replica"].to_list() == [-1] * int(rejected.sum())
    for index, parent in enumerate(trace["parent"]):
        if parent is None:
            assert result["arrival"][index] == trace["arrival"][index]
        else:
            # A rejection is over when it arrives.
            over = result["arrival" if rejected[parent] else "finish"][parent]
            assert result["arrival"][index] == over + trace["think_time"][index]


def test_a_rejected_request_is_counted_and_the_conversation_goes_on() -> None:
    trace = pl.DataFrame(
        {
            "request_id": [0, 1, 2, 3],
            "arrival": [0.0, None, None, 5.0],
            "prompt_tokens": [10, 200, 10, 95],
            "output_tokens": [2, 2, 2, 5],
            "parent": [None, 0, 1, None],
            "think_time": [None, 1.0, 2.0, None],
        }
    )
    times = LinearStepTimes(base=0.5, per_token=0, per_kv=0)
    result = equal_replicas(trace, EngineConfig(kv_blocks=100, max_model_len=100), times).run().requests
    assert result["status"].to_list() == ["finished", "rejected", "finished", "finished"]
    assert result["arrival"].to_list() == [0.0, 2.0, 4.0, 5.0]
    assert result["finish"].to_list() == [1.0, None, 5.0, 7.5]
    assert result["first_scheduled"].to_list() == [0.0, None, 4.0, 5.0]


def test_a_parent_may_release_several_turns() -> None:
    trace = pl.DataFrame(
        {
            "request_id": [0, 1, 2],
            "arrival": [0.0, None, None],
            "prompt_tokens": [10] * 3,
            "output_tokens": [1] * 3,
            "parent": [None, 0, 0],
            "think_time": [None, 3.0, None],  # no think time said: at once
        }
    )
    result = (
        equal_replicas(trace, EngineConfig(kv_blocks=100), LinearStepTimes(base=1, per_token=0, per_kv=0))
        .run()
        .requests
    )
    assert result["arrival"].to_list() == [0.0, 4.0, 1.0]


def test_what_can_never_run_is_refused_before_the_start() -> None:
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [33], "output_tokens": [1]})
    with pytest.raises(UserError, match=r"request 0: 33 prompt .* KV pool has 2 blocks of 16"):
        equal_replicas(trace, EngineConfig(kv_blocks=2), LinearStepTimes())
    whole = EngineConfig(kv_blocks=10, max_num_batched_tokens=32, max_num_seqs=1, enable_chunked_prefill=False)
    with pytest.raises(UserError, match="max_num_batched_tokens is 32 and chunked prefill is off"):
        equal_replicas(trace, whole, LinearStepTimes())
    # The last token is never computed: exactly full is enough.
    full = trace.with_columns(prompt_tokens=pl.lit(30), output_tokens=pl.lit(3))
    assert equal_replicas(full, EngineConfig(kv_blocks=2), LinearStepTimes()).run().requests["status"][0] == "finished"
