"""What steps take beyond their kernels: exact whether steps are taken singly or many at once, and added up right."""

from dataclasses import dataclass, field, replace

import polars as pl
import pytest
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from calibrate.datasheet import datasheet_profile
from calibrate.latency import StepLatency
from calibrate.model import load_model
from sim.engine.config import EngineConfig
from sim.engine.host_work import HostWork, HostWorkSettings
from sim.engine.plan import Plan
from sim.engine.request import Request
from sim.engine.step_costs import StepCost, StepCosts
from sim.fleet.equal_replicas import equal_replicas
from sim.fleet.fleet import FleetRun
from sim.results.recorder import EventRecorder


@dataclass
class PerShape:
    """Every number of decoding sequences costs `once` when it is met for the first time, and `each` at every step."""

    once: float
    each: float
    met: set[int] = field(default_factory=set)
    told: dict[float, float] = field(default_factory=dict)  # by the start of a row
    cost: StepCost = field(default_factory=StepCost)

    def begin(self, plan: Plan, now: float) -> StepCost:
        new = plan.decodes not in self.met
        self.met.add(plan.decodes)
        self.cost = StepCost(once=self.once if new else 0.0, each=self.each * (plan.decodes % 3))
        return self.cost

    def end(self, start: float, steps: int) -> None:
        self.told[start] = self.told.get(start, 0.0) + self.cost.once + self.cost.each * steps

    def finished(self, request: Request, now: float) -> None:
        pass


def run(
    trace: pl.DataFrame,
    config: EngineConfig,
    host: HostWorkSettings,
    source: PerShape,
    *,
    leap: bool,
    times: LinearStepTimes | StepLatency,
) -> FleetRun:
    def costs(replica: int, events: EventRecorder) -> StepCosts:
        return StepCosts([HostWork(host, replica, events), source])

    return equal_replicas(trace, config, times, costs=costs, leap=leap).run()


@st.composite
def sessions(draw: st.DrawFn) -> pl.DataFrame:
    trace = draw(traces())
    names = draw(st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=len(trace), max_size=len(trace)))
    return trace.with_columns(session=pl.Series(names, dtype=pl.String))


amounts = st.sampled_from([0.0, 0.001, 0.013])
host_settings = st.builds(
    HostWorkSettings,
    per_step=amounts,
    per_running=amounts,
    per_session=amounts,
    forget_after=st.sampled_from([None, 0.05, 1.0]),
)


@settings(max_examples=80, deadline=None)
@given(configs(block_size=4), sessions(), host_settings, amounts, amounts, st.sampled_from(["law", "sum", "profile"]))
def test_leap_equals_step(
    config: EngineConfig, trace: pl.DataFrame, host: HostWorkSettings, once: float, each: float, kind: str
) -> None:
    if kind == "profile":
        config = config.model_copy(update={"swap_blocks": 0})
    model = load_model("tiny-llama")
    profile = datasheet_profile("h100-sxm-80gb", model, 1)
    times = (
        StepLatency(profile, model, host_overlaps=config.async_scheduling, host_overhead=0.004)
        if kind == "profile"
        else LinearStepTimes(has_law=kind == "law")
    )
    leapt, stepped = (run(trace, config, host, PerShape(once, each), leap=leap, times=times) for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)


@settings(max_examples=60, deadline=None)
@given(configs(block_size=4), sessions(), amounts, amounts)
def test_costs_are_all_that_is_added(config: EngineConfig, trace: pl.DataFrame, once: float, each: float) -> None:
    source = PerShape(once, each)
    result = run(trace, config, HostWorkSettings(), source, leap=True, times=LinearStepTimes())
    assert result.requests["status"].to_list() == ["finished"] * len(trace)
    copies = set(result.events.filter(pl.col("kind") == "copy")["time"])
    only_decodes = (pl.col("prefill_tokens") == 0) & (pl.col("decode_seqs") > 0)
    for row in result.steps.filter(only_decodes).iter_rows(named=True):
        kernels = LinearStepTimes().decode_run(row["decode_seqs"], row["kv_tokens"], row["steps"]).sum()
        if row["start"] not in copies:
            assert row["end"] - row["start"] == pytest.approx(kernels + source.told[row["start"]], abs=1e-9)


def trace_of(sessions: list[str | None], *, gap: float, output: int = 2) -> pl.DataFrame:
    count = len(sessions)
    return pl.DataFrame(
        {
            "request_id": range(count),
            "arrival": [gap * i for i in range(count)],
            "prompt_tokens": [4] * count,
            "output_tokens": [output] * count,
            "session": pl.Series(sessions, dtype=pl.String),
        }
    )


STEADY = LinearStepTimes(base=0.5, per_token=0.0, per_kv=0.0)


@pytest.mark.parametrize(("forget", "known"), [(None, [1, 2, 3, 3, 4]), (15.0, [1, 2, 2, 2, 2])])
def test_work_grows_with_the_sessions_that_are_known(forget: float | None, known: list[int]) -> None:
    trace = trace_of(["a", "b", "c", "a", None], gap=10.0)
    host = HostWorkSettings(per_session=0.25, forget_after=forget)
    result = run(trace, EngineConfig(kv_blocks=100), host, PerShape(0.0, 0.0), leap=True, times=STEADY)
    # Each answer takes two steps.
    assert result.requests["e2e"].to_list() == [2 * (0.5 + 0.25 * count) for count in known]
    assert result.events.filter(pl.col("kind") == "host")["amount"].to_list() == [n for n in known for _ in range(2)]


@pytest.mark.parametrize(("host", "step"), [(0.25, 0.5), (0.75, 0.75)])
def test_what_is_overlapped_hides_behind_the_device(host: float, step: float) -> None:
    config = EngineConfig(kv_blocks=100, async_scheduling=True)
    trace = trace_of(["a"], gap=0.0, output=50)
    result = run(trace, config, HostWorkSettings(per_step=host), PerShape(0.0, 0.0), leap=True, times=STEADY)
    assert result.requests["e2e"].to_list() == [50 * step]
    synchronous = config.model_copy(update={"async_scheduling": False})
    result = run(trace, synchronous, HostWorkSettings(per_step=host), PerShape(0.0, 0.0), leap=True, times=STEADY)
    assert result.requests["e2e"].to_list() == [50 * (0.5 + host)]


def test_a_leap_pays_once_before_it_and_each_in_every_step() -> None:
    trace = trace_of([None], gap=0.0, output=101)
    source = replace(PerShape(8.0, 0.125), met={0})
    result = run(trace, EngineConfig(kv_blocks=100), HostWorkSettings(), source, leap=True, times=STEADY)
    assert len(result.steps) == 2
    assert result.requests["e2e"].to_list() == [0.5 + 8.0 + 100 * (0.5 + 0.125)]
    assert list(source.told.values()) == [0.0, 8.0 + 100 * 0.125]
