"""A trained LSTM on disk: `model.safetensors` holds the weights, `model.json` what else it needs; neither runs code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from ground.errors import UserError
from ground.spec import Spec, check_spec
from ground.whole_file import whole_file
from sim.fleet.forecasters.forecaster import ForecasterSetting
from sim.fleet.forecasters.lstm import WINDOW, Lstm, Scale

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


class LstmFile(Spec):
    """What `model.json` says. `about` is the caller's: what load it was trained on, such as its interval."""

    forecaster: str = Field(default="lstm", pattern="^lstm$")
    horizon: PositiveInt
    season: PositiveInt | None  # in intervals
    window: int = Field(default=WINDOW, ge=WINDOW, le=WINDOW)
    levels: tuple[float, ...]
    seed: int
    mean: float  # of log(1 + load) over the history
    deviation: PositiveFloat
    about: dict[str, Any]


def save(forecaster: Lstm, folder: Path, about: dict[str, Any]) -> None:
    """Write a trained forecaster into `folder`, which exists."""
    from safetensors.torch import save_file

    setting, scale = forecaster.setting, forecaster.scale
    description = LstmFile(
        horizon=setting.horizon,
        season=forecaster.season,
        levels=setting.levels,
        seed=setting.seed,
        mean=scale.mean,
        deviation=scale.deviation,
        about=about,
    )
    weights = {name: value.contiguous() for name, value in forecaster.network.state_dict().items()}
    with whole_file(folder / WEIGHTS) as partial:
        save_file(weights, partial)
        (folder / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[Lstm, dict[str, Any]]:
    """(the forecaster, what was said about it); it predicts what it predicted when it was saved.

    Raises:
        UserError: a file is missing or damaged, or the weights are of another network.
    """
    path = folder / DESCRIPTION
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    said = check_spec(LstmFile, data, str(path))
    forecaster = Lstm(ForecasterSetting(said.horizon, said.season, said.levels, said.seed))
    forecaster.season, forecaster.least = said.season, max(WINDOW, said.season or 0)
    forecaster.scale = Scale(said.mean, said.deviation)

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from sim.fleet.forecasters.lstm_network import Network

    network = Network(said.horizon, seasonal=said.season is not None)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / WEIGHTS}: {' '.join(str(error).split())}") from error
    forecaster.network = network.eval()
    return forecaster, said.about
