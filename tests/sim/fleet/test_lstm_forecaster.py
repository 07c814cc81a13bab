"""The LSTM: it beats the naive forecast where there is something to learn, and is the same when read back."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from ground.errors import UserError
from sim.fleet.forecasters import FORECASTERS
from sim.fleet.forecasters.forecaster import LEVELS, Forecaster, ForecasterSetting
from sim.fleet.forecasters.lstm import Lstm
from sim.fleet.forecasters.lstm_file import load, save
from sim.study.forecast_errors import pinball

PERIOD = 48


def sine_and_noise(count: int) -> np.ndarray:
    time = np.arange(count)
    noise = np.random.default_rng(1).normal(size=count)
    return np.maximum(10 + 5 * np.sin(2 * np.pi * time / PERIOD) + noise, 0.0)


@pytest.fixture(scope="module")
def loads() -> np.ndarray:
    return sine_and_noise(600)


@pytest.fixture(scope="module")
def trained(loads: np.ndarray) -> Lstm:
    forecaster = Lstm(ForecasterSetting(5))
    forecaster.fit(loads[:450])
    return forecaster


def losses(forecaster: Forecaster, loads: np.ndarray, first: int) -> np.ndarray:
    found = []
    for origin in range(first, len(loads) - 4, 5):
        forecast = forecaster.predict(loads[:origin], 5)
        found.append([pinball(loads[origin : origin + 5], forecast.at(level), level) for level in LEVELS])
    return np.mean(found, axis=0)


def test_it_beats_the_naive_forecast_on_a_sine_with_noise(loads: np.ndarray, trained: Lstm) -> None:
    naive = FORECASTERS["naive"](ForecasterSetting(5))
    naive.fit(loads[:450])
    assert (losses(trained, loads, 450) < 0.7 * losses(naive, loads, 450)).all()


def test_as_many_loads_as_the_levels_say_lie_below_the_quantiles(loads: np.ndarray, trained: Lstm) -> None:
    below = np.zeros(3)
    origins = range(450, 596)
    for origin in origins:
        below += (loads[origin : origin + 5] <= trained.predict(loads[:origin], 5).quantiles).mean(axis=1)
    assert below / len(origins) == pytest.approx(LEVELS, abs=0.12)


def test_what_was_saved_predicts_the_same(loads: np.ndarray, trained: Lstm, tmp_path: Path) -> None:
    save(trained, tmp_path, {"interval": 60.0})
    again, about = load(tmp_path)
    assert about == {"interval": 60.0}
    assert again.least == trained.least and again.setting.horizon == 5
    for origin in (200, 450, 600):
        one, other = trained.predict(loads[:origin], 5), again.predict(loads[:origin], 5)
        assert one.mean.tolist() == other.mean.tolist() and one.quantiles.tolist() == other.quantiles.tolist()


def test_the_file_is_read_without_running_code(trained: Lstm, tmp_path: Path) -> None:
    """It is plain numbers with a JSON header: a reader that knows neither torch nor pickle gets all weights."""
    save(trained, tmp_path, {})
    content = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    weights = safetensors.numpy.load(content)
    assert header.keys() - {"__metadata__"} == weights.keys() == trained.network.state_dict().keys()
    for name, value in trained.network.state_dict().items():
        assert (weights[name] == value.numpy()).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_damaged_files_are_an_error_of_one_line(trained: Lstm, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.json: cannot be read"):
        load(tmp_path)
    save(trained, tmp_path, {})
    said = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**said, "horizon": 7}))
    with pytest.raises(UserError, match=r"model\.safetensors: .*size mismatch") as found:
        load(tmp_path)
    assert "\n" not in found.value.message
    (tmp_path / "model.json").write_text(json.dumps({**said, "deviation": -1.0}))
    with pytest.raises(UserError, match=r"deviation: "):
        load(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(said))
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04nothing of the kind")
    with pytest.raises(UserError, match=r"model\.safetensors: "):
        load(tmp_path)


def test_training_leaves_the_callers_random_state_and_threads_alone(loads: np.ndarray) -> None:
    torch.manual_seed(11)
    expected, threads = torch.random.get_rng_state(), torch.get_num_threads()
    Lstm(ForecasterSetting(5, seed=2)).fit(loads[:200])
    assert torch.equal(torch.random.get_rng_state(), expected) and torch.get_num_threads() == threads


def test_another_seed_is_another_network(loads: np.ndarray) -> None:
    found = []
    for seed in (0, 1):
        forecaster = Lstm(ForecasterSetting(5, seed=seed))
        forecaster.fit(loads[:200])
        found.append(forecaster.predict(loads[:200], 5).mean.tolist())
    assert found[0] != found[1]
