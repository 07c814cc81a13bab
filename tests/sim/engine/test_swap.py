"""Preemption by swap: copied, not computed anew; and what the copies take."""

import polars as pl
import pytest
from engine_workloads import BURST, LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from ground.spec import check_spec
from sim.engine.config import EngineConfig
from sim.engine.swap_space import SwapSpace
from sim.fleet.equal_replicas import equal_replicas
from sim.study.deployment import deploy
from sim.study.scenario import Scenario
from sim.study.simulate import simulate

# Two requests whose blocks do not suffice for both to the end.
CROWDED = pl.DataFrame(
    {"request_id": [0, 1], "arrival": [0.0, 0.0], "prompt_tokens": [30, 30], "output_tokens": [40, 40]}
)


@settings(max_examples=100, deadline=None)
@given(configs(), traces(id_tokens=16))
def test_with_room_for_all_nothing_is_computed_twice(config: EngineConfig, trace: pl.DataFrame) -> None:
    config = config.model_copy(update={"swap_blocks": 10_000, "enable_prefix_caching": False})
    steps = equal_replicas(trace, config, LinearStepTimes()).run().steps
    decoded, prefilled = int((steps["steps"] * steps["decode_seqs"]).sum()), int(steps["prefill_tokens"].sum())
    assert decoded + prefilled == int(trace["prompt_tokens"].sum() + trace["output_tokens"].sum()) - len(trace)


def test_a_swap_takes_its_copies() -> None:
    config = EngineConfig(kv_blocks=25, block_size=4, enable_prefix_caching=False, swap_blocks=100)
    free, dear = (equal_replicas(CROWDED, config, times).run() for times in (FreeCopies(), FreeCopies(seconds=1.0)))
    assert dear.requests["preemptions"].sum() == free.requests["preemptions"].sum() == 1
    blocks = 12  # request 1 has computed 30 + 18 tokens when both need a thirteenth block and 25 are too few
    assert dear.requests["finish"].max() - free.requests["finish"].max() == pytest.approx(2 * blocks)


class FreeCopies(LinearStepTimes):
    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        object.__setattr__(self, "seconds", seconds)

    def swap(self, out: int, into: int) -> float:
        return self.seconds * (out + into)


@given(st.lists(st.integers(1, 6), max_size=8))
def test_a_host_block_belongs_to_one(counts: list[int]) -> None:
    space = SwapSpace(48)
    taken = [space.take(count) for count in counts]
    assert len({block for blocks in taken for block in blocks}) == sum(counts) == 48 - space.free
    for blocks in taken:
        space.give(blocks)
    assert space.free == 48


ENGINE = {"kv_blocks": 300, "swap_blocks": 1000}


def test_copies_that_nobody_measured_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"holds no copies .* expected a measured profile, or engine.host_bandwidth"):
        deploy(check_spec(Scenario, BURST | {"engine": ENGINE}, "made"))


def test_a_given_bandwidth_is_an_assumption() -> None:
    engine = ENGINE | {"host_bandwidth": 25e9}
    run = simulate(check_spec(Scenario, BURST | {"engine": engine}, "made"))
    assert ("engine.host_bandwidth", 25e9, "user") in [(one.name, one.value, one.source) for one in run.assumptions]
    assert run.metrics["preemptions"] > 0
    assert run.requests["status"].to_list() == ["finished"] * 30
