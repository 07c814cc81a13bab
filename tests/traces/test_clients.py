"""A mix of recorded clients: each sends as it was recorded to, whoever else is there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from ground.spec import check_spec
from traces.checks import check
from traces.synth import SynthSpec, generate
from traces.synth.pmf import Pmf, WindowedPmf, parse_pmf
from traces.table import Trace

WINDOW = 600
Row = tuple[int, float, str | None, float]  # window start, requests per second, distribution, shape
STEADY: list[Row] = [
    (0, 1.0, "Gamma", 1.0),
    (600, 2.0, "Gamma", 1.0),
    (1200, 0.0, None, 0.0),
    (1800, 1.0, "Weibull", 0.7),
]
BURSTY: list[Row] = [
    (0, 0.5, "Weibull", 0.3),
    (600, 0.25, "Gamma", 0.1),
    (1200, 1.0, "Gamma", 0.02),
    (1800, 0.01, "Weibull", 0.02),
]
PMFS: dict[str, dict[int, dict[float, float]]] = {
    "input_tokens": {0: {10: 0.5, 20: 0.5}, 1200: {100: 1.0}},
    "output_tokens": {0: {5: 0.25, 7: 0.75}},
}


def tables(folder: Path, clients: dict[int, list[Row]], pmfs: dict[int, Any] | None = None) -> Path:
    """The two Parquet tables, of one model of category `reason`."""
    rows = [("reason", "r", client, *row[:2], 1.0, *row[2:], 1.0) for client, found in clients.items() for row in found]
    schema = {
        "category": pl.String, "model": pl.String, "client_id": pl.Int16, "window_start_s": pl.Int32,
        "rate_rps": pl.Float64, "iat_cv": pl.Float64, "arrival_dist": pl.String, "shape": pl.Float64,
        "scale": pl.Float64,
    }  # fmt: skip
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "client_windows.parquet")
    cells = [
        ("reason", "r", client, start, field, value, probability)
        for client in clients
        for field, windows in (PMFS if pmfs is None else pmfs.get(client, {})).items()
        for start, pmf in windows.items()
        for value, probability in (pmf or {None: None}).items()
    ]
    schema = {
        "category": pl.String, "model": pl.String, "client_id": pl.Int16, "window_start_s": pl.Int32,
        "field": pl.String, "value": pl.Float64, "prob": pl.Float64,
    }  # fmt: skip
    frame = pl.DataFrame(cells, schema=schema, orient="row")
    frame.with_columns(pl.col("category", "field").cast(pl.Categorical)).write_parquet(folder / "field_pmf.parquet")
    return folder


def upstream(folder: Path, clients: dict[int, list[Row]]) -> Path:
    """The same as ServeGen's own files."""
    model = folder / "reason" / "r"
    model.mkdir(parents=True)
    for client, rows in clients.items():
        lines = [f"{start},{rate},1.0,{kind or ''},{shape},1.0" for start, rate, kind, shape in rows]
        (model / f"chunk-{client}-trace.csv").write_text("\n".join(lines) + "\n")
        starts = sorted({start for windows in PMFS.values() for start in windows})
        document = {
            str(start): {field: str(windows.get(start, {})) for field, windows in PMFS.items()} for start in starts
        }
        (model / f"chunk-{client}-dataset.json").write_text(json.dumps(document))
    return folder


def draw(folder: Path, seed: int = 0, duration: float = 2400, requests: int | None = None, **keys: Any) -> Trace:
    spec = {"duration": duration, "clients": {"folder": str(folder), "category": "reason", "model": "r", **keys}}
    return generate(SynthSpec.model_validate(spec | ({"requests": requests} if requests else {})), seed)


def absolute(trace: Trace, client: int) -> list[tuple[int, int]]:
    """The token counts of one client, in time order."""
    mine = trace.requests.filter(pl.col("tenant") == str(client))
    return mine.select("prompt_tokens", "output_tokens").rows()


def test_every_window_has_as_many_requests_as_were_recorded(tmp_path: Path) -> None:
    trace = draw(tables(tmp_path, {3: STEADY, 4: BURSTY}))
    check(trace)
    assert len(trace.requests) == 600 + 1200 + 600 + 300 + 150 + 600 + 6
    assert trace.rows_read == len(trace.requests)
    only = draw(tmp_path, only=[3]).requests["arrival"].to_numpy()
    # The first arrival is moved to 0, by less than the widest gap of the first window.
    counts = np.histogram(only, bins=[-1, 590, 610, 1190, 1210, 1790, 1810, 2400])[0]
    assert counts[0] + counts[1] + counts[2] + counts[3] == 1800 and counts[4] == 0


@given(st.integers(0, 20))
def test_a_client_draws_the_same_whoever_else_is_there(tmp_path_factory: Any, seed: int) -> None:
    both, alone = tmp_path_factory.mktemp("both"), tmp_path_factory.mktemp("alone")
    tables(both, {3: STEADY, 4: BURSTY, 9: STEADY})
    tables(alone, {4: BURSTY})
    mixed, single = draw(both, seed), draw(alone, seed)
    mine = mixed.requests.filter(pl.col("tenant") == "4")
    gaps = [np.diff(table["arrival"].to_numpy()) for table in (mine, single.requests)]
    assert np.allclose(*gaps, atol=1e-6) and absolute(mixed, 4) == absolute(single, 4)
    assert draw(both, seed).requests.equals(mixed.requests)
    assert absolute(mixed, 3) != absolute(mixed, 9)  # two equal recordings are still two clients


def test_upstreams_files_give_the_same_trace(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    clients = {3: STEADY, 12: BURSTY}
    ours, theirs = draw(tables(tmp_path / "a", clients)), draw(upstream(tmp_path / "b", clients))
    assert ours.requests.equals(theirs.requests)


def test_lengths_come_from_the_latest_window_and_are_independent(tmp_path: Path) -> None:
    trace = draw(tables(tmp_path, {3: STEADY}))
    late = trace.requests.filter(pl.col("arrival") >= 1800)
    assert late["prompt_tokens"].unique().to_list() == [100]
    early = trace.requests.filter(pl.col("arrival") < 1190)
    table = early.group_by("prompt_tokens", "output_tokens").len().sort("prompt_tokens", "output_tokens")
    shares = table["len"].to_numpy() / len(early)
    assert shares == pytest.approx([0.125, 0.375, 0.125, 0.375], abs=0.04)  # 1,780 draws: 3 standard deviations


@pytest.mark.parametrize(
    ("kind", "shape", "cv"),
    [("Gamma", 0.1, 10**0.5), ("Gamma", 4.0, 0.5), ("Weibull", 0.5, 5**0.5), ("Weibull", 1.0, 1.0)],
)
def test_burstiness_is_that_of_the_window(tmp_path: Path, kind: str, shape: float, cv: float) -> None:
    gaps = np.diff(draw(tables(tmp_path, {1: [(0, 80.0, kind, shape)]}), duration=600).requests["arrival"].to_numpy())
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)
    assert len(gaps) == 80 * 600 - 1


def test_a_rate_scales_all_clients_alike(tmp_path: Path) -> None:
    tables(tmp_path, {3: STEADY, 4: BURSTY})
    trace = draw(tmp_path, rate=0.3)
    assert len(trace.requests) == pytest.approx(0.3 * 2400, abs=6)
    assert trace.notes["rate_scaled_by"] == pytest.approx(0.3 * 2400 / 3456)
    share = (trace.requests["tenant"] == "3").mean()
    assert share == pytest.approx(2400 / 3456, abs=0.02)


def test_a_part_of_the_recording_is_that_part_of_the_whole(tmp_path: Path) -> None:
    tables(tmp_path, {3: STEADY})
    part = draw(tmp_path, start=600, duration=300)
    assert len(part.requests) == pytest.approx(600, abs=60) and part.requests["arrival"][-1] < 300
    same = draw(tmp_path).requests[600 : 600 + len(part.requests)]  # the first window has 600
    assert np.allclose(np.diff(part.requests["arrival"]), np.diff(same["arrival"]), atol=1e-6)
    assert part.requests.select("prompt_tokens", "output_tokens").equals(same.select("prompt_tokens", "output_tokens"))
    assert len(draw(tmp_path, requests=50).requests) == 50
    late = draw(tmp_path, start=900, duration=300)
    assert len(part.requests) + len(late.requests) == 1200


def test_counts_reconcile_where_a_drawn_length_is_zero(tmp_path: Path) -> None:
    tables(tmp_path, {3: STEADY}, {3: {"input_tokens": {0: {0: 0.5, 8: 0.5}}, "output_tokens": {0: {3: 1.0}}}})
    trace = draw(tmp_path, requests=40)
    check(trace)
    assert len(trace.requests) == 40 and trace.rows_read == 2400
    assert set(trace.dropped) == {"no prompt or no output tokens drawn", "beyond the number of requests asked for"}


def test_images_are_part_of_the_prompt(tmp_path: Path) -> None:
    pmfs = {
        "text_tokens": {0: {100: 1.0}},
        "image_count": {0: {0: 0.5, 2: 0.5}},
        "image_tokens": {0: {7: 1.0}},
        "output_tokens": {0: {3: 1.0}},
    }
    tables(tmp_path, {3: STEADY}, {3: pmfs})
    for name in ("client_windows", "field_pmf"):
        frame = pl.read_parquet(tmp_path / f"{name}.parquet").with_columns(category=pl.lit("multimodal"))
        frame.write_parquet(tmp_path / f"{name}.parquet")
    trace = draw(tmp_path, category="multimodal")
    assert sorted(trace.requests["prompt_tokens"].unique()) == [100, 114]


def test_clients_without_lengths_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    tables(tmp_path, {3: STEADY, 4: BURSTY}, {3: PMFS, 4: {"input_tokens": {0: {}}}})
    message = r"1 of 2 clients, first 4, have no recorded input_tokens, output_tokens \(31% of the requests\)"
    with pytest.raises(UserError, match=message):
        draw(tmp_path)
    trace = draw(tmp_path, without_lengths="leave out")
    assert trace.requests["tenant"].unique().to_list() == ["3"]
    assert trace.notes["clients_without_lengths_left_out"] == 1
    with pytest.raises(UserError, match="have no recorded"):
        draw(tmp_path, without_lengths="leave out", only=[4])


def test_a_client_uses_a_neighbouring_window_where_one_is_empty(tmp_path: Path) -> None:
    pmfs = {"input_tokens": {0: {}, 600: {9: 1.0}, 1200: {}}, "output_tokens": {0: {3: 1.0}}}
    trace = draw(tables(tmp_path, {3: STEADY}, {3: pmfs}))
    assert trace.requests["prompt_tokens"].unique().to_list() == [9]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "x"}, "found no reason/x, expected one of reason/r"),
        ({"only": [77]}, "reason/r has no client 77"),
        ({"start": 600}, r"found a recording of 2400 s, expected start \+ duration \(3000 s\)"),
        ({"folder": "none"}, "expected client_windows.parquet and field_pmf.parquet, or chunk"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    tables(tmp_path, {3: STEADY})
    spec = {"folder": str(tmp_path), "category": "reason", "model": "r"} | keys
    with pytest.raises(UserError, match=message):
        generate(SynthSpec.model_validate({"duration": 2400, "clients": spec}), 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 1.0, "Pareto", 1.0), "found Pareto with shape 1.0, expected Gamma or Weibull"),
        ((0, 1.0, "Gamma", 0.0), "shape above 0"),
        ((0, -1.0, "Gamma", 1.0), "rate_rps: found -1.0"),
    ],
)
def test_a_bad_window_is_named(tmp_path: Path, row: Row, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(tables(tmp_path, {3: [row, (600, 1.0, "Gamma", 1.0)]}), duration=600)


def test_a_window_that_is_silent_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no client sends anything from 1200 to 1800 s"):
        draw(tables(tmp_path, {3: STEADY}), start=1200, duration=600)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"duration": 1}, "give arrivals and lengths, or clients"),
        ({"requests": 1, "clients": {"folder": "x", "model": "m"}}, "clients need a duration"),
        (
            {"duration": 1, "arrivals": {"process": "poisson", "rate": 1}, "clients": {"folder": "x", "model": "m"}},
            "clients bring their own arrivals",
        ),
        ({"duration": 1, "clients": {"folder": "x", "model": "m", "category": "poetry"}}, "clients.category"),
    ],
)
def test_a_bad_spec_is_one_line(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_spec(SynthSpec, spec, "here")


def test_pmfs_are_parsed_and_nothing_is_run() -> None:
    pmf = parse_pmf("{ 100: 0.5, 2e2 : 3e-1,300:0.2, }")
    assert pmf is not None and pmf.values.tolist() == [100, 200, 300]
    assert pmf.mean == pytest.approx(170)
    assert parse_pmf("{}") is None
    for text in ("", "[1]", "{1}", "{1: 2: 3}", "{1: __import__('os')}", "{1: -1}", "{1: nan}", "{a: 1}", "{1: 0}"):
        with pytest.raises(ValueError):
            parse_pmf(text)


def test_a_bad_pmf_names_its_file_and_window(tmp_path: Path) -> None:
    upstream(tmp_path, {3: STEADY})
    (tmp_path / "reason" / "r" / "chunk-3-dataset.json").write_text('{"0": {"input_tokens": "{1: open}"}}')
    with pytest.raises(UserError, match=r"chunk-3-dataset\.json: window '0', input_tokens: could not convert"):
        draw(tmp_path)


@given(
    st.dictionaries(st.integers(0, 99), st.integers(1, 9), min_size=1, max_size=9),
    st.lists(st.floats(0, 0.999999), max_size=20),
)
def test_a_pmf_gives_each_value_its_share(weights: dict[int, int], uniforms: list[float]) -> None:
    pmf = Pmf.of(np.array([*weights], dtype=float), np.array([*weights.values()], dtype=float))
    total, drawn = sum(weights.values()), pmf.quantiles(np.array(uniforms))
    for uniform, value in zip(uniforms, drawn, strict=True):
        below = sum(weight for other, weight in weights.items() if other < value)
        assert below - 1e-9 <= uniform * total <= below + weights[int(value)] + 1e-9


def test_windows_are_chosen_by_their_start() -> None:
    one, two = (Pmf.of(np.array([value]), np.array([1.0])) for value in (1.0, 2.0))
    windows = WindowedPmf(np.array([10.0, 20.0]), (one, two))
    assert [windows.at(time) for time in (3.0, 10.0, 19.9, 20.0, 99.0)] == [one, one, one, two, two]
