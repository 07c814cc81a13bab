"""`simctl forecast` as a user types it."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command_line import refused, simctl

from sim.fleet.forecasters import FORECASTERS
from sim.fleet.forecasters.lstm_file import load
from sim.study.load_series import LOADS

QUICK = ("--forecaster", "naive", "--forecaster", "holt_winters", "--season", "60")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty minutes with a minute's season, drawn interval by interval of five seconds."""
    random = np.random.default_rng(0)
    counts = random.poisson(20 + 15 * np.sin(2 * np.pi * np.arange(240) / 12))
    arrivals = np.sort(
        np.concatenate([5.0 * place + random.uniform(0, 5, count) for place, count in enumerate(counts)])
    )
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    table = {"request_id": range(len(arrivals)), "arrival": arrivals - arrivals[0]}
    pl.DataFrame(table).with_columns(prompt_tokens=100, output_tokens=5).write_csv(path)
    return str(path)


def forecast(trace: str, folder: Path, *options: str) -> str:
    return simctl("forecast", trace, "--interval", "5", *options, "-o", str(folder)).output


def test_it_writes_the_table_the_numbers_and_a_page(trace: str, tmp_path: Path) -> None:
    output = forecast(trace, tmp_path / "out", *QUICK, "--capacity", "2", "--fits", "2")
    assert "holt_winters" in output and "wasted" in output
    result = json.loads((tmp_path / "out" / "forecast.json").read_text())
    assert list(result["forecasters"]) == ["naive", "holt_winters"]
    assert result["forecasters"]["holt_winters"]["wape"] < result["forecasters"]["naive"]["wape"]
    assert result["season"] == 60 and result["unit"] == "requests/s" and result["left_out"] == {}
    cost = result["forecasters"]["naive"]["provisioning"]["0.9"]
    assert cost["gpu_hours"] == pytest.approx(
        result["references"]["needed"]["gpu_hours"] + cost["wasted"] - cost["missing"]
    )
    table = pl.read_parquet(tmp_path / "out" / "backtest.parquet")
    assert len(table) == 2 * result["forecasters"]["naive"]["intervals"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="figure"') == 4 and "What it would have cost" in page


def test_the_same_command_does_nothing_twice_and_writes_the_same(
    trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast(trace, tmp_path, *QUICK)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    monkeypatch.setattr("sim.study.backtest.run_fold", None)
    forecast(trace, tmp_path, *QUICK)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    # What does not change a prediction may change; the predictions are kept.
    forecast(trace, tmp_path, *QUICK[:2], "--season", "60", "--capacity", "3")
    assert list(json.loads((tmp_path / "forecast.json").read_text())["forecasters"]) == ["naive"]


def test_an_interruption_keeps_what_was_predicted(trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.study import backtest

    with monkeypatch.context() as patch:
        run_fold = backtest.run_fold

        def interrupted(name: str, *arguments: object, **options: object) -> pl.DataFrame:
            if name == "holt_winters":
                raise KeyboardInterrupt
            return run_fold(name, *arguments, **options)  # type: ignore[arg-type]

        patch.setattr(backtest, "run_fold", interrupted)
        result = simctl("forecast", trace, "--interval", "5", *QUICK, "-o", str(tmp_path), code=130)
        assert "the same command goes on" in result.stderr
    assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == [f"naive-{n}.parquet" for n in range(3)]
    forecast(trace, tmp_path, *QUICK)
    assert (tmp_path / "report.html").is_file()


def test_the_model_of_the_whole_trace_is_saved(trace: str, tmp_path: Path) -> None:
    forecast(trace, tmp_path, "--forecaster", "naive", "--season", "60", "--save-model")
    forecaster, about = load(tmp_path)
    assert about == {"trace": trace, "load": "requests", "unit": "requests/s", "interval": 5.0}
    assert forecaster.season == 12
    table = pl.read_parquet(tmp_path / "backtest.parquet")
    recent = table.sort("interval")["load"].to_numpy()
    # Half a minute's season later the load is another, and the model knows.
    ahead = [forecaster.predict(recent[: len(recent) - back], 1).mean[0] for back in range(12)]
    assert max(ahead) > 1.5 * min(ahead)


def test_its_help_names_every_forecaster_and_load() -> None:
    shown = simctl("forecast", "--help").output
    assert all(f"{name}," in shown or f"{name};" in shown for name in FORECASTERS)
    assert all(name in shown for name in LOADS)


def test_mistakes_are_said_in_one_line(trace: str, tmp_path: Path) -> None:
    options = ("-o", str(tmp_path / "out"))
    found = refused("forecast", trace, "--forecaster", "oracle", *options)
    assert "found 'oracle', expected one of naive, seasonal_naive" in found
    assert "--load: found 'bytes'" in refused("forecast", trace, "--load", "bytes", *options)
    assert "expected at least two intervals of 900 s" in refused("forecast", trace, "--interval", "900", *options)
    assert "found 7 intervals" in refused("forecast", trace, "--interval", "150", *options)
    assert "--season: found 7 s" in refused("forecast", trace, "--interval", "5", "--season", "7", *options)
    too_long = ("--forecaster", "holt_winters", "--season", "600")
    result = simctl("forecast", trace, "--interval", "5", *too_long, *options, code=2)
    assert result.stderr.splitlines()[-1].startswith("simctl: holt_winters: found a history of")
    assert "cannot be read" in refused("forecast", str(tmp_path / "none.csv"), *options)


def test_a_folder_of_another_forecast_is_left_alone(trace: str, tmp_path: Path) -> None:
    forecast(trace, tmp_path, *QUICK)
    found = refused("forecast", trace, "--interval", "5", "--horizon", "3", *QUICK, "-o", str(tmp_path))
    assert "holds another backtest" in found
