"""Without a KV cache every step computes whole sequences: the work grows with the square of the length."""

from collections.abc import Sequence

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ground.errors import UserError
from ground.spec import check_spec
from sim.engine.config import EngineConfig
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.study.scenario import EngineSettings, Scenario
from sim.study.simulate import simulate

OFF = {"kv_cache": False, "enable_prefix_caching": False, "swap_blocks": 0}


def run(trace: pl.DataFrame, config: EngineConfig, *, leap: bool = True, times: object = None) -> FleetRun:
    return equal_replicas(trace, config, times or LinearStepTimes(), leap=leap).run()  # type: ignore[arg-type]


def computed(steps: pl.DataFrame) -> int:
    return int(steps["prefill_tokens"].sum() + (steps["steps"] * steps["decode_seqs"]).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 60), st.booleans())
def test_the_work_of_one_request(prompt: int, output: int, ahead: bool) -> None:
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [prompt], "output_tokens": [output]})
    settings = {"kv_blocks": 100, "block_size": 16, "async_scheduling": ahead}
    without = run(trace, EngineConfig.model_validate(settings | {"kv_cache": False}))
    assert computed(without.steps) == sum(range(prompt, prompt + output))
    assert computed(run(trace, EngineConfig.model_validate(settings)).steps) == prompt + output - 1


class Noting(LinearStepTimes):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "asked", [])

    def step(self, prefills: Sequence[tuple[int, int]], decodes: int, kv_tokens: int, spread: object = None) -> float:
        self.asked.append((sorted(prefills), decodes, kv_tokens))  # type: ignore[attr-defined]
        return super().step(prefills, decodes, kv_tokens, spread)


@settings(max_examples=50, deadline=None)
@given(configs(), traces(id_tokens=16), st.booleans())
def test_every_step_computes_all_that_the_cache_would_have_held(
    config: EngineConfig, trace: pl.DataFrame, ahead: bool
) -> None:
    """The same schedule with room for all in the cache: step by step the tokens that are new there, and those before
    them too."""
    config = config.model_copy(update={"async_scheduling": ahead, "kv_blocks": 10_000})
    cached, off = Noting(), Noting()
    trace = trace.with_columns(arrival=(pl.col("arrival") * 2**10).round() / 2**10)
    step_seconds = {"base": 2**-7, "per_token": 0.0, "per_kv": 0.0}  # so that both schedule alike, to the bit
    for times in (cached, off):
        for name, value in step_seconds.items():
            object.__setattr__(times, name, value)
    with_cache = config.model_copy(update={"enable_prefix_caching": False, "swap_blocks": 0})
    expected = run(trace, with_cache, leap=False, times=cached)
    result = run(trace, config.model_copy(update=OFF), times=off)
    assert_frame_equal(result.requests, expected.requests, check_exact=True)
    rows = zip(result.steps.iter_rows(named=True), expected.steps.iter_rows(named=True), strict=True)
    for row, other in rows:
        assert (row["start"], row["end"], row["running"]) == (other["start"], other["end"], other["running"])
        assert row["prefill_seqs"] == other["prefill_seqs"] + other["decode_seqs"]
        assert row["prefill_tokens"] >= other["prefill_tokens"] + other["decode_seqs"] + other["kv_tokens"]
        assert row["decode_seqs"] == row["kv_tokens"] == row["kv_blocks"] == 0
    assert all(not decodes and not kv_tokens for _, decodes, kv_tokens in off.asked)  # type: ignore[attr-defined]
    assert all(start == 0 for prefills, _, _ in off.asked for _, start in prefills)  # type: ignore[attr-defined]


@settings(max_examples=100, deadline=None)
@given(configs(block_size=4), traces(), st.booleans())
def test_leap_equals_step_and_all_are_served(config: EngineConfig, trace: pl.DataFrame, law: bool) -> None:
    config = config.model_copy(update=OFF)
    times = LinearStepTimes(has_law=law)
    leapt, stepped = (run(trace, config, leap=leap, times=times) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert_frame_equal(leapt.steps, stepped.steps, check_exact=True)
    assert leapt.requests["status"].to_list() == ["finished"] * len(trace)
    assert not leapt.requests["preemptions"].sum()
    assert set(leapt.steps["steps"]) == {1}


def test_it_does_not_end_at_the_pool() -> None:
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [500], "output_tokens": [20]})
    with pytest.raises(UserError, match="the KV pool has 2 blocks of 16"):
        run(trace, EngineConfig(kv_blocks=2))
    assert run(trace, EngineConfig(kv_blocks=2, kv_cache=False)).requests["status"].item() == "finished"
    with pytest.raises(UserError, match="max_num_batched_tokens is 256 and chunked prefill is off"):
        run(trace, EngineConfig(kv_blocks=2, kv_cache=False, enable_chunked_prefill=False, max_num_batched_tokens=256))


def test_no_prefix_cache_unless_asked_for() -> None:
    assert not check_spec(EngineSettings, {"kv_cache": False}, "made").enable_prefix_caching
    assert not EngineConfig(kv_blocks=1, kv_cache=False).enable_prefix_caching
    assert not check_spec(EngineSettings, {"kv_reservation": "oracle"}, "made").enable_prefix_caching
    assert check_spec(EngineSettings, {"kv_cache": True}, "made").enable_prefix_caching


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"enable_prefix_caching": True}, "kv_cache is false and enable_prefix_caching is true"),
        ({"swap_blocks": 3}, "kv_cache is false and swap_blocks is 3; expected 0"),
        ({"data_parallel": 2}, "kv_cache is false and data_parallel is 2; expected 1"),
        ({"kv_reservation": "oracle"}, "kv_cache is false and kv_reservation is oracle"),
    ],
)
def test_what_makes_no_sense_is_refused(engine: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec(EngineSettings, {"kv_cache": False} | engine, "made")


def test_a_scenario_with_it_takes_longer_and_has_metrics() -> None:
    scenario = {
        "model": "Llama-3.1-8B",
        "profile": "datasheet:h100-sxm-80gb",
        "trace": {
            "synth": {
                "requests": 12,
                "arrivals": {"process": "poisson", "rate": 2.0},
                "lengths": {
                    "prompt": {"distribution": "uniform", "low": 300, "high": 600},
                    "output": {"distribution": "uniform", "low": 50, "high": 80},
                },
            }
        },
    }
    off, on = (
        simulate(check_spec(Scenario, scenario | {"engine": {"kv_cache": cache}}, "made")) for cache in (False, True)
    )
    assert off.metrics["requests"]["finished"] == 12
    assert off.metrics["tpot"]["mean"] > 2 * on.metrics["tpot"]["mean"]
    assert off.metrics["kv"]["peak"] is None, "there is no pool"
    assert off.metrics["decode_batch"] is None, "nothing decodes from a cache"
    assert check_spec(Scenario, off.scenario, "resolved").engine.kv_cache is False
