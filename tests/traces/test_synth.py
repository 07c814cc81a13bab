"""The generators draw what their spec says, and one part's draws do not move another's."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ground.errors import UserError
from traces.checks import check
from traces.synth import SynthSpec, generate, load_spec
from traces.table import Trace

SHORT = {"prompt": {"distribution": "constant", "value": 50}, "output": {"distribution": "constant", "value": 7}}


def spec(**keys: Any) -> SynthSpec:
    return SynthSpec.model_validate({"arrivals": {"process": "poisson", "rate": 2}, "lengths": SHORT, **keys})


def times(arrivals: dict[str, Any], requests: int | None = 20_000, **keys: Any) -> np.ndarray:
    bound = {} if requests is None else {"requests": requests}
    return generate(spec(arrivals=arrivals, **bound, **keys), 11).requests["arrival"].to_numpy()


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [
        ({"process": "poisson", "rate": 3}, 1.0),
        ({"process": "gamma", "rate": 3, "cv": 2.5}, 2.5),
        ({"process": "gamma", "rate": 3, "burstiness": 4}, 0.5),
        ({"process": "constant", "rate": 3}, 0.0),
    ],
)
def test_gaps_have_the_mean_and_the_cv_asked_for(arrivals: dict[str, Any], cv: float) -> None:
    gaps = np.diff(times(arrivals))
    # Standard errors of the mean of n gaps, and of the CV of Gamma gaps (delta method), at five sigma.
    assert gaps.mean() == pytest.approx(1 / 3, rel=5 * cv / math.sqrt(len(gaps)) + 1e-9)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=5 * math.sqrt((1 + 2 * cv**2) / len(gaps)), abs=1e-9)


def test_burstiness_is_cv_to_the_minus_two() -> None:
    by_cv = times({"process": "gamma", "rate": 2, "cv": 0.5}, 100)
    assert np.array_equal(by_cv, times({"process": "gamma", "rate": 2, "burstiness": 4}, 100))


def test_on_off_has_its_mean_rate_and_its_silences() -> None:
    arrivals = {"process": "on-off", "rate_on": 20, "mean_on": 2, "mean_off": 6}
    found = times(arrivals, None, duration=40_000)
    # About 5,000 cycles of exponential dwells: the share of time that is on has a standard error below 2 %.
    assert len(found) / 40_000 == pytest.approx(20 * 2 / 8, rel=0.08)
    gaps = np.diff(found)
    silences = gaps[gaps > 1.0]  # e^-20 of the gaps inside a burst are as long
    assert silences.mean() == pytest.approx(1.0 + 6, rel=0.1)  # memoryless: what is left beyond 1 s has mean_off
    assert len(silences) == pytest.approx(40_000 / 8 * math.exp(-1 / 6), rel=0.08)


def test_diurnal_swings_by_peak_to_trough() -> None:
    arrivals = {"process": "diurnal", "rate": 50, "peak_to_trough": 4, "period": 100, "peak_at": 25}
    found = times(arrivals, None, duration=1000)
    assert len(found) == pytest.approx(50_000, rel=5 / math.sqrt(50_000))
    counts, _ = np.histogram(found % 100, bins=np.arange(0, 101, 10))
    middle = np.arange(5, 100, 10)
    expected = 50 * 100 * (1 + 0.6 * np.sinc(0.1) * np.cos(2 * np.pi * (middle - 25) / 100))
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected.max())


PROCESSES = [
    {"process": "constant", "rate": 4},
    {"process": "poisson", "rate": 4},
    {"process": "gamma", "rate": 4, "cv": 3},
    {"process": "on-off", "rate_on": 9, "rate_off": 1, "mean_on": 3, "mean_off": 5},
    {"process": "diurnal", "rate": 4, "peak_to_trough": 3, "period": 60},
]


@pytest.mark.parametrize("arrivals", PROCESSES, ids=lambda arrivals: arrivals["process"])
def test_a_shorter_trace_is_the_beginning_of_a_longer_one(arrivals: dict[str, Any]) -> None:
    long = times(arrivals, 6000)
    assert len(long) == 6000 and long[0] == 0 and (np.diff(long) >= 0).all()
    assert np.array_equal(times(arrivals, 300), long[:300])
    bounded = times(arrivals, None, duration=200.0)
    assert np.array_equal(bounded, long[: len(bounded)])
    assert len(times(arrivals, 300, duration=1e9)) == 300


LENGTHS: list[tuple[dict[str, Any], float, float]] = [
    ({"distribution": "constant", "value": 9}, 9, 0),
    ({"distribution": "uniform", "low": 10, "high": 20}, 15, math.sqrt((11**2 - 1) / 12)),
    ({"distribution": "geometric", "mean": 4}, 4, math.sqrt(12)),
    ({"distribution": "lognormal", "median": 500, "sigma": 0.5}, 500 * math.exp(0.125), 500 * 0.604),
    ({"distribution": "zipf", "exponent": 1, "low": 5, "high": 7}, (5 + 6 / 2 + 7 / 3) / (11 / 6), 0.76),
]


@pytest.mark.parametrize(("length", "mean", "deviation"), LENGTHS, ids=lambda value: str(value)[:40])
def test_lengths_have_their_mean(length: dict[str, Any], mean: float, deviation: float) -> None:
    lengths = {"prompt": length, "output": SHORT["output"]}
    tokens = generate(spec(requests=20_000, lengths=lengths), 5).requests["prompt_tokens"].to_numpy()
    assert tokens.mean() == pytest.approx(mean, abs=5 * deviation / math.sqrt(len(tokens)) + 1e-9)
    assert tokens.std() == pytest.approx(deviation, rel=0.05)


def test_lognormal_is_clipped() -> None:
    prompt = {"distribution": "lognormal", "median": 100, "sigma": 3, "low": 20, "high": 400}
    tokens = generate(spec(requests=500, lengths={"prompt": prompt, "output": SHORT["output"]}), 1).requests
    assert (tokens["prompt_tokens"].min(), tokens["prompt_tokens"].max()) == (20, 400)


def test_resampled_pairs_stay_together(tmp_path: Path) -> None:
    pairs = {(3, 30), (5, 50), (7, 70)}
    lines = [f"{prompt},{output}" for prompt, output in sorted(pairs)]
    (tmp_path / "lengths.csv").write_text("\n".join(["num_prefill_tokens,num_decode_tokens", *lines, "9,0"]))
    lengths = {"resample": {"file": "lengths.csv"}}
    trace = generate(spec(requests=100, lengths=lengths), 1, base_dir=tmp_path)
    assert set(trace.requests.select("prompt_tokens", "output_tokens").rows()) == pairs


def test_resampling_reads_traces_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,3,30\n1,5,50\n")
    trace = generate(spec(requests=50, lengths={"resample": {"file": "t.csv"}}), 1, base_dir=tmp_path)
    assert set(trace.requests.select("prompt_tokens", "output_tokens").rows()) == {(3, 30), (5, 50)}


CHAT: dict[str, Any] = {
    "prefixes": {"groups": 3, "tokens": {"distribution": "uniform", "low": 1, "high": 90}, "zipf": 1.0},
    "sessions": {
        "turns": {"distribution": "geometric", "mean": 3},
        "think_time": {"distribution": "exponential", "mean": 8},
    },
    "lengths": {
        "prompt": {"distribution": "uniform", "low": 1, "high": 60},
        "output": {"distribution": "uniform", "low": 1, "high": 60},
    },
}


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    requests=st.integers(1, 60),
    block=st.integers(1, 40),
    prefixes=st.booleans(),
    limit=st.none() | st.integers(220, 600),
)
def test_sessions_accumulate_and_their_blocks_continue(
    seed: int, requests: int, block: int, prefixes: bool, limit: int | None
) -> None:
    keys = {**CHAT, "sessions": {**CHAT["sessions"], "context_limit": limit}, "block_tokens": block}
    if not prefixes:
        keys = {**keys, "prefixes": None}
    trace = generate(spec(requests=requests, **keys), seed)
    check(trace)
    assert len(trace.requests) <= requests
    rows = trace.requests.rows(named=True)
    heads: set[tuple[int, ...]] = set()
    for row in rows:
        total = row["prompt_tokens"] + row["output_tokens"]
        assert limit is None or total <= limit
        ids = row["prefix_ids"]
        assert len(ids) == total // block and len(set(ids)) == len(ids)
        if row["turn"] == 0:
            assert row["arrival"] is not None and row["parent"] is None and row["think_time"] is None
        else:
            before = rows[row["parent"]]
            assert row["arrival"] is None and row["think_time"] >= 0
            assert (before["session"], before["turn"]) == (row["session"], row["turn"] - 1)
            new = row["prompt_tokens"] - before["prompt_tokens"] - before["output_tokens"]
            assert 1 <= new <= 60
            assert ids[: len(before["prefix_ids"])] == before["prefix_ids"]
        heads.update(tuple(ids[: place + 1]) for place in range(len(ids)))
    # Chain ids: an id has one place and one id before it, so there are as many different heads as ids.
    assert len({head[-1] for head in heads}) == len(heads)


def test_prefixes_are_shared_within_their_group_only() -> None:
    prefixes = {"groups": 4, "tokens": {"distribution": "constant", "value": 40}, "zipf": 1.0}
    table = generate(spec(requests=8000, prefixes=prefixes), 3).requests
    assert set(table["prompt_tokens"]) == {90}
    heads = [tuple(ids[:2]) for ids in table["prefix_ids"].to_list()]
    share = {head: heads.count(head) / len(heads) for head in set(heads)}
    weights = [1 / rank / (25 / 12) for rank in (1, 2, 3, 4)]
    assert sorted(share.values(), reverse=True) == pytest.approx(weights, abs=5 * 0.5 / math.sqrt(8000))
    third = [ids[2] for ids in table["prefix_ids"].to_list()]
    assert len(set(third)) == len(third)  # 40 tokens fill two blocks of 16; the third is everyone's own


def test_same_seed_same_table_other_seed_another() -> None:
    def draw(seed: int) -> Trace:
        return generate(spec(requests=200, **CHAT), seed)

    assert draw(1).requests.equals(draw(1).requests)
    assert not draw(1).requests.equals(draw(2).requests)


def test_lengths_do_not_move_arrivals_nor_arrivals_lengths() -> None:
    base = generate(spec(requests=100), 1).requests
    other_lengths = {"prompt": {"distribution": "uniform", "low": 1, "high": 9}, "output": SHORT["output"]}
    assert generate(spec(requests=100, lengths=other_lengths), 1).requests["arrival"].equals(base["arrival"])
    one = generate(spec(requests=100, lengths=other_lengths), 1).requests
    two = generate(spec(requests=100, lengths=other_lengths, arrivals={"process": "constant", "rate": 1}), 1).requests
    assert one["prompt_tokens"].equals(two["prompt_tokens"])


def test_what_cannot_be_drawn_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arrival within duration"):
        generate(spec(duration=1e-9), 1)
    sessions = {**CHAT["sessions"], "context_limit": 40}
    with pytest.raises(UserError, match=r"context_limit.*has 57 tokens, expected at most 40"):
        generate(spec(requests=5, sessions=sessions), 1)
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        generate(spec(requests=5, lengths={"resample": {"file": "none.csv"}}), 1, base_dir=tmp_path)


GOOD = """
requests: 5
arrivals: {process: poisson, rate: 2}
lengths:
  prompt: {distribution: constant, value: 5}
  output: {distribution: constant, value: 5}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rate: 2", "rat: 2"), r"arrivals.rate: Field required"),
        (("rate: 2", "rate: 2, cv: 3"), r"unknown key 'arrivals.cv'"),
        (("rate: 2", "rate: -2"), r"arrivals.rate: .*greater than 0, found -2"),
        (("rate: 2", "rate: .nan"), r"arrivals.rate: .*finite"),
        (("rate: 2", "rate: fast"), r"arrivals.rate: .*number.*found 'fast'"),
        (("process: poisson", "process: bursty"), r"arrivals: .*'bursty'"),
        (("process: poisson", "process: gamma"), r"arrivals: give exactly one of cv and burstiness"),
        (("requests: 5", ""), r"the whole: give requests, duration or both"),
        (("requests: 5", "requests: 0"), r"requests: .*greater than 0, found 0"),
        (("requests: 5", "requests: 5\nspeed: 3"), r"unknown key 'speed'"),
        (("value: 5}\n  output", "value: 0}\n  output"), r"lengths.prompt.value: .*greater than 0"),
        (
            ("constant, value: 5}\n  output", "uniform, low: 9, high: 3}\n  output"),
            r"lengths.prompt: high \(3\) must be at least low \(9\)",
        ),
        (("  output: {distribution: constant, value: 5}\n", ""), r"lengths: give prompt and output, or resample"),
        ((GOOD, "- 1"), r"found list, expected a mapping"),
        ((GOOD, "a: [1"), r"not YAML"),
    ],
)
def test_a_bad_spec_names_its_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    assert len(generate(load_spec(path), 0).requests) == 5
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change))
    with pytest.raises(UserError, match=message) as caught:
        load_spec(path)
    assert "\n" not in caught.value.message and str(path) in caught.value.message
