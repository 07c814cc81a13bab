"""The laws of stretching, thinning, superposing, cutting and dequantising."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from traces.checks import check
from traces.dequantise import dequantise
from traces.scaling import first, superpose, thin, time_stretch
from traces.synth import SynthSpec, generate
from traces.table import Trace

LENGTHS = {
    "prompt": {"distribution": "uniform", "low": 1, "high": 99},
    "output": {"distribution": "constant", "value": 7},
}
CHAT = {
    "sessions": {
        "turns": {"distribution": "geometric", "mean": 3},
        "think_time": {"distribution": "constant", "value": 1},
    },
    "prefixes": {"groups": 2, "tokens": {"distribution": "constant", "value": 40}},
}


def poisson(requests: int, seed: int = 0, **keys: Any) -> Trace:
    arrivals = {"process": "poisson", "rate": 5}
    return generate(
        SynthSpec.model_validate({"requests": requests, "arrivals": arrivals, "lengths": LENGTHS, **keys}), seed
    )


def cv(trace: Trace) -> float:
    gaps = np.diff(trace.requests["arrival"].to_numpy())
    return float(gaps.std() / gaps.mean())


def open_sessions() -> Trace:
    """Two sessions with arrivals of their own, and one turn that a parent releases."""
    table = pl.DataFrame(
        {
            "request_id": [0, 1, 2, 3, 4],
            "arrival": [0.0, 1.0, 4.0, None, 9.0],
            "prompt_tokens": [1, 2, 3, 4, 5],
            "output_tokens": [1, 1, 1, 1, 1],
            "session": ["a", "b", "a", "a", None],
            "parent": [None, None, None, 2, None],
        }
    )
    return Trace(table, "canonical", "here", 5)


def test_stretch_divides_the_rate_and_keeps_the_cv_and_think_times() -> None:
    trace = poisson(500, **CHAT)
    slow = time_stretch(trace, 4)
    assert slow.requests["arrival"].to_list() == (trace.requests["arrival"] * 4).to_list()
    assert slow.requests.drop("arrival").equals(trace.requests.drop("arrival"))
    assert slow.notes["scaling"] == [{"time_stretch": 4}]
    assert "scaling" not in trace.notes
    assert cv(time_stretch(poisson(500), 3)) == pytest.approx(cv(poisson(500)))


def test_thinning_divides_the_rate_and_pulls_constant_gaps_to_poisson() -> None:
    keys = {"requests": 40_000, "arrivals": {"process": "constant", "rate": 5}, "lengths": LENGTHS}
    trace = generate(SynthSpec.model_validate(keys), 0)
    rare = thin(trace, 0.05, seed=3)
    assert len(rare.requests) == pytest.approx(2000, abs=5 * math.sqrt(40_000 * 0.05 * 0.95))
    # Gaps are geometric: CV = sqrt(1 − keep).
    assert cv(rare) == pytest.approx(math.sqrt(0.95), rel=5 * math.sqrt(3 / 2000))
    check(rare)
    assert rare.dropped == {"thinned to 0.05": 40_000 - len(rare.requests)}


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), keep=st.floats(0.2, 1.0), copies=st.integers(1, 4), requests=st.integers(1, 60))
def test_sessions_stay_whole_and_every_result_is_a_trace(seed: int, keep: float, copies: int, requests: int) -> None:
    trace = poisson(requests, seed, **CHAT)
    try:
        thinned = thin(trace, keep, seed)
    except UserError as error:
        assert "no request is left" in error.message
        return
    many = superpose(thinned, copies, seed)
    for result in (thinned, many):
        check(result)
        turns = result.requests.group_by("session").agg("turn", "parent", "request_id")
        for turn, parent, ids in turns.select("turn", "parent", "request_id").iter_rows():
            assert sorted(turn) == list(range(len(turn)))
            assert sorted(p for p in parent if p is not None) == sorted(ids)[:-1]
    assert many.requests["session"].n_unique() == copies * thinned.requests["session"].n_unique()
    assert sorted(many.requests["prompt_tokens"]) == sorted(list(thinned.requests["prompt_tokens"]) * copies)


def test_superposed_copies_multiply_the_rate_over_the_same_span() -> None:
    trace = poisson(4000)
    many = superpose(trace, 3, seed=1)
    assert len(many.requests) == 12_000 == many.rows_read
    span = trace.requests["arrival"].max()
    assert many.requests["arrival"].max() <= span * (1 + 1 / 3999)  # type: ignore[operator]
    assert cv(many) == pytest.approx(1.0, abs=0.06)
    halves = many.requests["arrival"].to_numpy() < span / 2
    assert halves.mean() == pytest.approx(0.5, abs=0.03)
    assert superpose(trace, 3, seed=1).requests.equals(many.requests)


def test_one_copy_changes_nothing_but_the_notes() -> None:
    for trace in (poisson(50, **CHAT), open_sessions()):
        assert superpose(trace, 1, seed=0).requests.equals(trace.requests)


def test_copies_have_prefixes_of_their_own_unless_shared() -> None:
    trace = poisson(100, **CHAT)
    distinct = trace.requests["prefix_ids"].explode().n_unique()
    assert superpose(trace, 3, seed=0).requests["prefix_ids"].explode().n_unique() == 3 * distinct
    shared = superpose(trace, 3, seed=0, share_prefixes=True)
    assert shared.requests["prefix_ids"].explode().n_unique() == distinct


def test_an_open_session_moves_as_one() -> None:
    many = superpose(open_sessions(), 4, seed=5)
    check(many)
    rows = many.requests.filter(pl.col("session").str.starts_with("a"))
    for _, session in rows.group_by("session"):
        arrivals = session["arrival"].drop_nulls().to_list()
        assert arrivals[1] - arrivals[0] == pytest.approx(4.0)


def test_first_cuts_and_counts() -> None:
    trace = open_sessions()
    cut = first(trace, seconds=4.5)
    assert cut.requests["prompt_tokens"].to_list() == [1, 2, 3, 4]  # the released turn goes with its parent
    assert cut.dropped == {"not in the first 4.5 s": 1}
    assert first(trace, requests=2).requests["prompt_tokens"].to_list() == [1, 2]
    assert first(trace, requests=9).dropped == {}
    rows = len(trace.requests)
    for kept in range(1, rows + 1):  # rounded up, but not because of a last digit
        assert (
            len(first(trace, share=kept / rows).requests)
            == len(first(trace, share=(kept - 0.5) / rows).requests)
            == kept
        )
    check(cut)


@pytest.mark.parametrize(
    "change",
    [
        lambda trace: first(trace),
        lambda trace: first(trace, seconds=-1),
        lambda trace: first(trace, requests=0),
        lambda trace: first(trace, share=0.0),
        lambda trace: first(trace, share=1.5),
        lambda trace: first(trace, share=0.5, requests=1),
        lambda trace: time_stretch(trace, 0),
        lambda trace: time_stretch(trace, math.inf),
        lambda trace: thin(trace, 0, 0),
        lambda trace: thin(trace, 1.5, 0),
        lambda trace: superpose(trace, 0, 0),
        lambda trace: dequantise(trace, 0),
        lambda trace: dequantise(trace, 0, quantum=-1),
    ],
)
def test_senseless_factors_are_user_errors(change: Any) -> None:
    with pytest.raises(UserError):
        change(open_sessions())


def quantised(quantum: float) -> tuple[Trace, Trace]:
    fine = poisson(3000)
    coarse = fine.requests.with_columns(pl.col("arrival") // quantum * quantum)
    return fine, Trace(coarse, "mooncake", "here", len(coarse))


def test_dequantised_poisson_is_poisson_again() -> None:
    fine, coarse = quantised(3.0)
    assert cv(coarse) > 3
    spread = dequantise(coarse, seed=2)
    assert spread.notes["dequantised"] == {"quantum_seconds": 3.0, "detected": True, "seed": 2}
    assert cv(spread) == pytest.approx(cv(fine), abs=0.08)
    moved = spread.requests["arrival"].to_numpy() - coarse.requests["arrival"].to_numpy()
    assert np.ptp(moved) < 3.0  # nobody leaves the quantum; the whole is shifted to begin at 0
    assert spread.requests.drop("arrival").equals(coarse.requests.drop("arrival"))
    assert spread.requests["arrival"][0] == 0 and spread.requests["arrival"].is_sorted()
    assert dequantise(coarse, seed=2).requests.equals(spread.requests)
