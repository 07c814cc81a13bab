"""The largest rate and the fewest replicas: near theory, what trying every one gives, and honest where neither is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from sim.study.capacity.bisection import DOUBLINGS, Bisection, geometric_mean, violations, whole_middle
from sim.study.capacity.capacity import Capacity, CapacityStudy, capacity
from sim.study.capacity.load_scale import offered_rate, scaled_load
from sim.study.capacity.report import fewest, print_capacity, remarks, write_capacity
from sim.study.points import Point, run_point
from sim.study.scenario import scenario_of
from sim.study.simulate import load_trace
from sim.study.workers import LocalWorkers
from traces.table import Trace

SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 60,
            "arrivals": {"process": "poisson", "rate": 20},
            "lengths": {
                "prompt": {"distribution": "constant", "value": 200},
                "output": {"distribution": "uniform", "low": 2, "high": 60},
            },
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"max_num_seqs": 4, "kv_blocks": 4_000},
    "slo": {"ttft": 0.5, "attainment": 0.9},
}


# Bisection.


def ask(bisection: Bisection, answer: Callable[[float], bool]) -> dict[float, bool]:
    """Every question it asks, with its answer."""
    asked: dict[float, bool] = {}
    while bisection.at is not None:
        at = bisection.at
        assert at not in asked
        asked[at] = answer(at)
        bisection.tell(asked[at])
    return asked


@given(st.floats(0.01, 1_000), st.floats(0.001, 0.5))
def test_a_turn_is_found_to_the_tolerance(turn: float, tolerance: float) -> None:
    bisection = Bisection(1.0, geometric_mean(tolerance))
    asked = ask(bisection, lambda at: at <= turn)
    assert bisection.low is not None and bisection.high is not None
    assert bisection.low <= turn < bisection.high <= bisection.low * (1 + tolerance) * (1 + 1e-12)
    assert violations(asked) == []
    assert len(asked) <= 2 + abs(math.log2(turn)) + math.log2(1 / math.log2(1 + tolerance)) + 2


@given(st.integers(1, 2_000))
def test_the_fewest_are_exact(turn: int) -> None:
    bisection = Bisection(1.0, whole_middle, least=1.0)
    asked = ask(bisection, lambda at: at < turn)
    assert bisection.high == turn and all(at == int(at) >= 1 for at in asked)


@pytest.mark.parametrize("always", [True, False])
def test_an_answer_that_never_turns_ends(always: bool) -> None:
    bisection = Bisection(1.0, geometric_mean(0.1))
    asked = ask(bisection, lambda at: always)
    assert len(asked) == DOUBLINGS + 1
    assert (bisection.high is None) == always and (bisection.low is None) == (not always)


@given(st.dictionaries(st.integers(1, 12).map(float), st.booleans()))
def test_violations_are_all_there_are(answers: dict[float, bool]) -> None:
    found = dict(violations(answers))
    for at, yes in answers.items():
        above = [other for other, kept in answers.items() if other > at and kept]
        assert (at in found) == (not yes and bool(above))
        assert at not in found or found[at] == min(above)


# Load.


def a_trace(arrivals: list[float | None]) -> Trace:
    rows = {"arrival": arrivals}
    return Trace(pl.DataFrame(rows, schema={"arrival": pl.Float64}), "test", "t.csv", len(arrivals))


def test_a_rate_is_of_the_gaps() -> None:
    assert offered_rate(a_trace([0.0, 1.0, None, 2.0, 4.0])) == 0.75
    for arrivals in ([], [3.0], [2.0, 2.0], [None]):
        with pytest.raises(UserError, match="expected a trace that has a rate"):
            offered_rate(a_trace(arrivals))


@given(st.floats(0.1, 9.0))
def test_a_stretched_load_is_as_said(factor: float) -> None:
    setting = {"trace.scale": scaled_load(SCENARIO, {}, factor, "stretch")}
    before, after = (offered_rate(load_trace(scenario_of(SCENARIO, each))) for each in ({}, setting))
    assert after == pytest.approx(factor * before)


def test_a_superposed_load_spans_the_same_time() -> None:
    many = scenario_of(SCENARIO, {"trace.synth.requests": 2_000})
    data = many.resolved()
    for factor in (0.3, 1.0, 2.6):
        loaded = load_trace(scenario_of(data, {"trace.scale": scaled_load(data, {}, factor, "superpose")}))
        assert offered_rate(loaded) == pytest.approx(factor * offered_rate(load_trace(many)), rel=0.08)
        assert loaded.requests["arrival"].max() == pytest.approx(100, rel=0.15)


def test_a_scale_that_was_there_stays() -> None:
    scaled = {**SCENARIO, "trace": {**SCENARIO["trace"], "scale": {"stretch": 2.0, "thin": 0.5, "copies": 3}}}
    assert scaled_load(scaled, {}, 4.0, "stretch") == {"stretch": 0.5, "thin": 0.5, "copies": 3}
    assert scaled_load(scaled, {}, 1.5, "superpose") == {"stretch": 2.0, "thin": 0.375, "copies": 6}
    assert scaled_load(SCENARIO, {"trace.scale": {"stretch": 3.0}}, 3.0, "stretch") == {"stretch": 1.0}


# Capacity.


def test_one_server_and_exponential_work_keep_to_theory(tmp_path: Path) -> None:
    """One sequence at a time whose output is geometric is nearly M/M/1, where P(wait > t) = ρ·exp(−(μ − λ)·t)
    (Kleinrock 1975). The largest λ for which that is at most 1 − attainment follows."""
    outputs, limit, attainment = 100.0, 0.9, 0.8
    scenario = {
        **SCENARIO,
        "trace": {
            "synth": {
                "requests": 1_500,
                "arrivals": {"process": "poisson", "rate": 1.3},
                "lengths": {
                    "prompt": {"distribution": "constant", "value": 1},
                    "output": {"distribution": "geometric", "mean": outputs},
                },
            }
        },
        "engine": {"max_num_seqs": 1, "kv_blocks": 4_000},
        "slo": {"ttft": limit, "attainment": attainment},
    }
    found = capacity(CapacityStudy(scenario=scenario, seeds=1, tolerance=0.04), tmp_path / "out")
    alone = found.lanes[0].probes[min(found.lanes[0].probes)]
    first, tpot = alone["ttft.p50"], alone["tpot.mean"]
    assert first is not None and tpot is not None
    mu = 1 / (first + (outputs - 1) * tpot)
    turn = Bisection(1.0, geometric_mean(1e-9))
    ask(turn, lambda rate: rate < mu and rate / mu * math.exp((rate - mu) * (limit - first)) <= 1 - attainment)
    interval = found.answers[0].interval(0.95)
    assert turn.low is not None and interval is not None
    assert interval.mean == pytest.approx(turn.low, rel=0.08)
    assert found.answers[0].short == [] and all(lane.kept(min(lane.probes)) for lane in found.lanes)


def test_the_fewest_replicas_are_those_that_trying_each_finds(tmp_path: Path) -> None:
    made = CapacityStudy(scenario=SCENARIO, rate=150.0, seeds=1, variants=[{}, {"engine.max_num_seqs": 8}])
    found = capacity(made, tmp_path / "out")
    for answer in found.answers:
        for seed, value in zip((0,), answer.values, strict=True):
            scale = scaled_load(
                SCENARIO, {}, 150.0 / offered_rate(load_trace(scenario_of(SCENARIO, {"seed": seed}))), "stretch"
            )
            setting = {**answer.setting, "seed": seed, "trace.scale": scale}
            met = [
                run_point(SCENARIO, 0, {**setting, "fleet.replicas": count})["metrics"]["slo.met"]
                for count in range(1, 8)
            ]
            assert value == 1 + met.index(True) and all(met[int(value) - 1 :])
    few, many = (fewest(answer) for answer in found.answers)
    assert few is not None and many is not None and 1 < many < few


def formula(turn: float, *, gap: tuple[float, float] = (0.0, 0.0)) -> Callable[..., Point]:
    """In place of a simulation: the SLO is met up to `turn` times the trace's rate, but for a gap; or from so many
    replicas on. A seed moves the turn by a tenth."""

    def point(scenario: dict[str, Any], index: int, setting: dict[str, Any]) -> Point:
        if "fleet.replicas" in setting:
            at = setting["fleet.replicas"]
            met = at >= turn and not gap[0] < at < gap[1]
        else:
            at = 1 / setting["trace.scale"]["stretch"]
            met = at <= turn * (1 + 0.1 * setting["seed"]) and not gap[0] < at < gap[1]
        metrics = {"slo.met": met, "slo.attainment": 0.9 + 0.05 * met, "duration": 100 / at, "e2e.p99": 1.0}
        return {"point": index, "status": "ok", "error": None, "metrics": metrics}

    return point


def found_by(monkeypatch: pytest.MonkeyPatch, folder: Path, point: Callable[..., Point], **asked: Any) -> Capacity:
    monkeypatch.setattr("sim.study.points.run_point", point)
    return capacity(CapacityStudy.model_validate({"scenario": SCENARIO, "seeds": 2, **asked}), folder)


def test_the_interval_is_over_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(monkeypatch, tmp_path / "out", formula(3.0), tolerance=0.001)
    rates = [lane.rate for lane in found.lanes]
    assert found.answers[0].values == pytest.approx([3.0 * rates[0], 3.3 * rates[1]], rel=0.001)
    interval = found.answers[0].interval(0.95)
    assert interval is not None and interval.half == pytest.approx(
        12.706 * abs(3.3 * rates[1] - 3.0 * rates[0]) / 2, rel=0.05
    )
    assert remarks(found) == []
    write_capacity(found, "s", tmp_path / "out")
    data = json.loads((tmp_path / "out" / "capacity.json").read_text())
    assert data["answers"][0]["rate"] == interval.mean and data["answers"][0]["gpus"] == 1
    assert "SLO attainment" in (tmp_path / "out" / "report.html").read_text()


def test_where_it_is_not_monotone_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = found_by(monkeypatch, tmp_path / "rate", formula(4.0, gap=(1.9, 2.1)), tolerance=0.05)
    for (seed, missed, kept), lane in zip(found.answers[0].violations, found.lanes, strict=True):
        assert seed == lane.seed and 1.9 < missed / lane.rate < 2.1 < kept / lane.rate
    counted = found_by(monkeypatch, tmp_path / "count", formula(3.0, gap=(4.5, 5.5)), rate=40.0)
    assert counted.answers[0].values == [3.0, 3.0] and counted.answers[0].violations == [(0, 5.0, 3.0), (1, 5.0, 3.0)]
    print_capacity(counted)
    said = capsys.readouterr().out
    assert "seed 0: the SLO is missed at 5 replicas and kept at 3" in said


@pytest.mark.parametrize(
    ("turn", "said"),
    [(1e9, "no rate breaks the SLO, up to 4,096 times"), (1e-9, "no rate keeps the SLO, down to 1/4,096")],
)
def test_no_turn_is_said(turn: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(monkeypatch, tmp_path / "out", formula(turn))
    assert found.answers[0].values == [None, None] and found.answers[0].interval(0.95) is None
    assert all(said in line for line in remarks(found)) and len(remarks(found)) == 2
    write_capacity(found, "s", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "capacity.json").read_text())["answers"][0]["rate"] is None


def test_no_replicas_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(monkeypatch, tmp_path / "out", formula(1e9), rate=5.0)
    assert fewest(found.answers[0]) is None and "not even 4,096 replicas keep the SLO" in remarks(found)[0]


def test_a_run_too_short_to_see_a_queue_grow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_by(monkeypatch, tmp_path / "out", formula(8.0))
    assert found.answers[0].short == [0, 1] and "lasts less than 20 of its slowest requests" in remarks(found)[-1]


def test_it_goes_on_and_workers_change_nothing(tmp_path: Path) -> None:
    made = CapacityStudy(scenario=SCENARIO, seeds=1, tolerance=0.4, variants=[{}, {"engine.max_num_seqs": 2}])
    whole = capacity(made, tmp_path / "whole")
    log = (tmp_path / "whole" / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "capacity.yaml").write_bytes((tmp_path / "whole" / "capacity.yaml").read_bytes())
    (tmp_path / "cut" / "runs.jsonl").write_text("".join(log[:-3]) + log[-3][:20])
    with LocalWorkers(2) as workers:
        again = capacity(made, tmp_path / "cut", workers=workers)
    assert again.answers == whole.answers
    assert [lane.probes for lane in again.lanes] == [lane.probes for lane in whole.lanes]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate": 5.0, "scenario": {**SCENARIO, "fleet": {"sites": {"a": {}}}}}, "fleet.sites"),
        ({"variants": [{"engine.max_num_seqs": 0}]}, "engine.max_num_seqs"),
        ({"variants": [{"seed": 1}]}, "seed is varied and is set for every run"),
        ({"rate": 5.0, "variants": [{}, {"fleet.replicas": 2}]}, "fleet.replicas is varied and is set for every run"),
        ({"scenario": {**SCENARIO, "engine": {"kv_blocks": 2}}}, "under seed 0: .*can never run"),
    ],
)
def test_what_cannot_be_answered_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        capacity(CapacityStudy.model_validate({"scenario": SCENARIO, **changes}), tmp_path / "out")
    assert "\n" not in caught.value.message
