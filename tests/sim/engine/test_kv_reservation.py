"""Contiguous reservation: ranges never overlap, waste is what the paper that named it says, and paging ends it."""

import math

import numpy as np
import polars as pl
import pytest
from engine_workloads import BURST, LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from polars.testing import assert_frame_equal

from ground.errors import UserError
from ground.spec import check_spec
from sim.engine.block_pool import NO_HIT
from sim.engine.config import EngineConfig
from sim.engine.contiguous_pool import ContiguousPool, Reserved, reserved_slots
from sim.engine.reservation_use import ReservationUse
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.study.scenario import Scenario
from sim.study.simulate import simulate

POLICIES = ("max", "pow2", "oracle")
SLOTS = 96


class PoolMachine(RuleBasedStateMachine):
    """Ranges come and go in any order; a list of slots, each with its owner, says what is free."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ContiguousPool(SLOTS // 4, 4, "oracle", None)
        self.owner: list[Reserved | None] = [None] * SLOTS

    def gaps(self) -> list[tuple[int, int]]:
        out: list[tuple[int, int]] = []
        for slot, owner in enumerate(self.owner):
            if owner is None and out and sum(out[-1]) == slot:
                out[-1] = (out[-1][0], out[-1][1] + 1)
            elif owner is None:
                out.append((slot, 1))
        return out

    @rule(slots=st.integers(1, 40), unused=st.integers(0, 40))
    def admit(self, slots: int, unused: int) -> None:
        wanted = Reserved(slots, max(1, slots - unused))
        first = next((start for start, length in self.gaps() if length >= slots), None)
        free = self.owner.count(None)
        assert self.pool.admit(wanted, NO_HIT, 1) == (first is not None)
        if first is None:
            assert self.pool.fragmented == (free if free >= slots else 0)
        else:
            assert wanted.start == first
            self.owner[first : first + slots] = [wanted] * slots

    @precondition(lambda self: any(self.owner))
    @rule(which=st.integers(0))
    def release(self, which: int) -> None:
        held = list(dict.fromkeys(owner for owner in self.owner if owner is not None))
        gone = held[which % len(held)]
        self.pool.release(gone)
        self.owner = [None if owner is gone else owner for owner in self.owner]

    @invariant()
    def agrees(self) -> None:
        held = {owner for owner in self.owner if owner is not None}
        assert self.pool._gaps == self.gaps()
        assert self.pool.largest_gap == max((length for _, length in self.gaps()), default=0)
        assert self.pool.reserved == SLOTS - self.owner.count(None)
        assert self.pool.held == math.ceil(self.pool.reserved / 4)
        assert self.pool.needed == sum(owner.needed for owner in held)


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 5000))
def test_what_each_reserves(prompt: int, output: int, more: int) -> None:
    longest = prompt + output + more
    oracle, pow2, most = (reserved_slots(policy, prompt, output, longest) for policy in ("oracle", "pow2", "max"))
    assert oracle == prompt + output
    assert most == longest
    for_output = reserved_slots("pow2", prompt, output, None) - prompt
    assert math.log2(for_output).is_integer()
    assert output <= for_output < 2 * output or output == for_output == 1
    assert pow2 == min(prompt + for_output, longest)
    assert reserved_slots("pow2", 10, 25, None) == 10 + 32  # the paper's example


@st.composite
def cases(draw: st.DrawFn) -> tuple[EngineConfig, pl.DataFrame]:
    """A request has at most 96 tokens; `pow2` may reserve 60 + 64 for it."""
    policy = draw(st.sampled_from(POLICIES))
    config = draw(configs(block_size=4)).model_copy(
        update={
            "kv_reservation": policy,
            "enable_prefix_caching": False,
            "swap_blocks": 0,
            "max_model_len": draw(st.sampled_from([96, 100, 120])),
            "kv_blocks": draw(st.integers(31, 90)),
        }
    )
    return config, draw(traces())


def run(trace: pl.DataFrame, config: EngineConfig, *, leap: bool = True, law: bool = True) -> FleetRun:
    return equal_replicas(trace, config, LinearStepTimes(has_law=law), leap=leap).run()


@settings(max_examples=150, deadline=None)
@given(cases(), st.booleans())
def test_leap_equals_step_and_nobody_is_preempted(case: tuple[EngineConfig, pl.DataFrame], law: bool) -> None:
    config, trace = case
    leapt, stepped = (run(trace, config, leap=leap, law=law) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
    assert set(leapt.steps["end"]) <= set(stepped.steps["end"])
    assert leapt.requests["status"].to_list() == ["finished"] * len(trace)
    assert not leapt.requests["preemptions"].sum()
    assert leapt.kv_use is not None and stepped.kv_use is not None
    for kind, share in leapt.kv_use.items():
        assert share == pytest.approx(stepped.kv_use[kind], abs=0.02)  # tokens grow a little faster than linearly


@settings(max_examples=100, deadline=None)
@given(cases())
def test_what_is_reserved_is_what_the_running_requests_asked_for(case: tuple[EngineConfig, pl.DataFrame]) -> None:
    """Written from the requests table alone: a range is held from the step that admits to the end of the last one."""
    config, trace = case
    config = config.model_copy(update={"async_scheduling": False})
    result = run(trace, config, leap=False)
    rows = result.requests.iter_rows(named=True)
    ranges = [
        (
            row["first_scheduled"],
            row["finish"],
            reserved_slots(config.kv_reservation, row["prompt_tokens"], row["output_tokens"], config.max_model_len),
            row["prompt_tokens"] + row["output_tokens"] - 1,
        )
        for row in rows
    ]
    for step in result.steps.iter_rows(named=True):
        held = sum(slots for start, end, slots, _ in ranges if start <= step["start"] and end > step["end"])
        assert step["kv_blocks"] == -(-held // 4)
    first, last = result.steps["start"].min(), result.steps["end"].max()
    total = config.kv_blocks * 4 * (last - first)
    reserved = sum((end - start) * slots for start, end, slots, _ in ranges)
    never = sum((end - start) * (slots - needed) for start, end, slots, needed in ranges)
    assert result.kv_use is not None
    use = {kind: share or 0.0 for kind, share in result.kv_use.items()}
    assert set(use) == set(ReservationUse.KINDS)
    assert sum(use.values()) == pytest.approx(1)
    assert all(share >= -1e-12 for share in use.values())
    assert use["used"] + use["coming"] + use["never_used"] == pytest.approx(reserved / total)
    assert use["never_used"] == pytest.approx(never / total)


def test_a_gap_between_two_is_of_no_use_to_a_third() -> None:
    """Ranges of 40, 20 and 40 slots; where the middle one was, and 20 more, are free: no range of 30."""
    trace = pl.DataFrame(
        {
            "request_id": [0, 1, 2, 3],
            "arrival": [0.0, 0.001, 0.002, 0.003],
            "prompt_tokens": [10, 10, 10, 10],
            "output_tokens": [30, 10, 30, 20],
        }
    )
    config = EngineConfig(kv_blocks=30, block_size=4, kv_reservation="oracle")
    requests = run(trace, config).requests
    assert requests["first_scheduled"][3] == requests["finish"][0], "not when 40 slots are free, but when 60 are"
    use = run(trace, config).kv_use
    assert use is not None and use["fragmented"] is not None and use["fragmented"] > 0
    paged = run(trace, EngineConfig(kv_blocks=30, block_size=4, enable_prefix_caching=False)).requests
    assert paged["first_scheduled"][3] < requests["first_scheduled"][3]


def test_the_order_of_the_paper() -> None:
    """Lengths as in ShareGPT (its means: 161 and 338 tokens, figure 11 there), and a pool of 15,700 slots (table 1)."""
    random = np.random.default_rng(5)
    count = 300
    prompts = np.clip(random.lognormal(np.log(161) - 0.5, 1.0, count), 4, 1024).astype(int)
    outputs = np.clip(random.lognormal(np.log(338) - 0.32, 0.8, count), 4, 1024).astype(int)
    trace = pl.DataFrame(
        {"request_id": range(count), "arrival": [0.0] * count, "prompt_tokens": prompts, "output_tokens": outputs}
    )
    used, throughput = {}, {}
    for policy in (*POLICIES, "paged"):
        config = EngineConfig(
            kv_blocks=981, block_size=16, max_model_len=2048, kv_reservation=policy, enable_prefix_caching=False
        )
        result = run(trace, config)
        busy = result.steps.filter(pl.col("waiting") > 0)  # as long as there is somebody to fill the pool with
        seconds = busy["end"] - busy["start"]
        tokens = busy["kv_tokens"] + busy["decode_seqs"] * busy["steps"] / 2
        held = 16 * (981 if policy != "paged" else busy["kv_blocks"])
        used[policy] = (seconds * tokens).sum() / (seconds * held).sum()
        throughput[policy] = outputs.sum() / result.requests["finish"].max()
        if result.kv_use is not None and policy == "max":
            assert result.kv_use["never_used"] > result.kv_use["coming"]  # type: ignore[operator]
    assert used["max"] < used["pow2"] < used["oracle"] < used["paged"]
    assert throughput["max"] < throughput["pow2"] < throughput["oracle"] < throughput["paged"]
    assert used["paged"] > 0.9


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"kv_reservation": "max"}, "kv_reservation is max and max_model_len is not given"),
        ({"kv_reservation": "oracle", "enable_prefix_caching": True}, "kv_reservation is oracle and enable_prefix"),
        ({"kv_reservation": "oracle", "swap_blocks": 2}, "kv_reservation is oracle and swap_blocks is 2; expected 0"),
        ({"kv_reservation": "oracle", "data_parallel": 2}, "kv_reservation is oracle and data_parallel is 2"),
    ],
)
def test_what_makes_no_sense_is_refused(engine: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec(EngineConfig, {"kv_blocks": 10} | engine, "made")


def test_a_request_for_which_no_range_is_long_enough() -> None:
    trace = pl.DataFrame({"request_id": [0], "arrival": [0.0], "prompt_tokens": [100], "output_tokens": [33]})
    assert run(trace, EngineConfig(kv_blocks=10, kv_reservation="oracle")).requests["status"].item() == "finished"
    with pytest.raises(UserError, match="kv_reservation is pow2 and the KV pool has 160 token slots"):
        run(trace, EngineConfig(kv_blocks=10, kv_reservation="pow2"))


def test_a_run_says_what_the_slots_were_for() -> None:
    scenario = BURST | {"engine": {"kv_blocks": 300, "kv_reservation": "max", "max_model_len": 2000}}
    metrics = simulate(check_spec(Scenario, scenario, "made")).metrics
    use = metrics["kv"]["use"]
    assert sum(use.values()) == pytest.approx(1)
    assert use["never_used"] > 0.4
    paged = scenario | {"engine": {"kv_blocks": 300}}
    assert "use" not in simulate(check_spec(Scenario, paged, "made")).metrics["kv"]
