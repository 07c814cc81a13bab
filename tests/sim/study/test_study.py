"""Which points a study has, and which studies are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import UserError
from sim.engine.presets import PRESETS
from sim.study.study import Range, Study, load_study

SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 5,
            "arrivals": {"process": "constant", "rate": 2},
            "lengths": {
                "prompt": {"distribution": "constant", "value": 50},
                "output": {"distribution": "constant", "value": 5},
            },
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
}
GRID: dict[str, Any] = {
    "scenario": SCENARIO,
    "parameters": {"engine.max_num_seqs": [1, 4], "fleet.router": ["round_robin", "power_of_two", "prefix_aware"]},
}


def study(folder: Path, **changes: Any) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(GRID | changes))
    return load_study(path)


def test_a_grid_is_every_combination_after_the_baseline(tmp_path: Path) -> None:
    baseline = {"engine.max_num_seqs": 2}
    settings = study(tmp_path, baseline=baseline).settings()
    assert settings[0] == baseline
    assert [tuple(setting.values()) for setting in settings[1:]] == [
        (seqs, router) for seqs in (1, 4) for router in ("round_robin", "power_of_two", "prefix_aware")
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pionts": 3}, "unknown key 'pionts'"),
        ({"method": "bayes"}, "method: Input should be 'grid' or 'random', found 'bayes'"),
        ({"objective": "ttft.p98"}, "objective: metric 'ttft.p98' is unknown; did you mean ttft.p"),
        ({"objective": "requests.total"}, "requests.total is neither better large nor small"),
        ({"parameters": {}}, "parameters"),
        ({"parameters": {"seed": []}}, "parameters.seed: the list is empty"),
        ({"parameters": {"seed": {"low": 1, "high": 2}}}, "parameters.seed: a grid needs a list of values"),
        ({"parameters": {"engine.max_seqs": [1]}}, "parameters.engine.max_seqs: no such key in a scenario"),
        ({"baseline": {"engine.max_seqs": 1}}, "baseline.engine.max_seqs: no such key in a scenario"),
        ({"points": 3}, "points belongs to method random"),
        ({"method": "random"}, "method random needs points"),
        ({"winners": 0}, "winners: Input should be greater than 0, found 0"),
        ({"scenario": 3}, "scenario is 3, expected a mapping or the path"),
        ({"scenario": "nosuch.yaml"}, "nosuch.yaml: cannot be read"),
        ({"scenario": SCENARIO | {"sede": 1}}, "unknown key 'sede'"),
        ({"scenario": SCENARIO | {"seed": -1}}, "seed: Input should be greater than or equal to 0"),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        study(tmp_path, **changes)
    assert said in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"low": 2, "high": 2}, "low is 2 and high 2, expected low < high"),
        ({"low": 0, "high": 2, "log": True}, "expected more than 0 with log"),
        ({"low": 1, "hihg": 2}, "parameters.seed.high: Field required"),
        (3, "parameters.seed: Input should be a valid dictionary or instance of Range, found 3"),
        ({"low": 0.5, "high": 2, "integer": True}, "expected whole numbers with integer"),
    ],
)
def test_a_range_that_is_none(tmp_path: Path, bounds: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        study(tmp_path, method="random", points=2, parameters={"seed": bounds})
    assert said in caught.value.message


BOUNDS = st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(BOUNDS, st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_draws_lie_in_their_range(bounds: tuple[int, int], log: bool, integer: bool, seed: int) -> None:
    low, high = bounds
    interval, random = Range(low=low, high=high, log=log, integer=integer), np.random.default_rng(seed)
    for _ in range(20):
        value = interval.draw(random)
        assert low <= value <= high
        assert isinstance(value, int) == integer
        assert not integer or value < high


def test_draws_have_their_law() -> None:
    random, draws = np.random.default_rng(1), 4_000
    uniform = Range(low=1, high=100)
    below = sum(uniform.draw(random) < 10 for _ in range(draws))
    assert abs(below - draws / 11) < 4 * (draws / 11) ** 0.5
    log = Range(low=1, high=100, log=True)
    below = sum(log.draw(random) < 10 for _ in range(draws))
    assert abs(below - draws / 2) < 4 * (draws / 4) ** 0.5
    whole = Range(low=0, high=3, integer=True)
    assert {whole.draw(random) for _ in range(100)} == {0, 1, 2}


def random_study(folder: Path, parameters: dict[str, Any], *, points: int = 12, seed: int = 3) -> list[dict[str, Any]]:
    return study(folder, method="random", points=points, seed=seed, parameters=parameters).settings()[1:]


def test_random_points_belong_to_their_key_and_seed(tmp_path: Path) -> None:
    seqs = {"low": 1, "high": 64, "log": True, "integer": True}
    routers = ["round_robin", "power_of_two"]
    both = random_study(tmp_path, {"engine.max_num_seqs": seqs, "fleet.router": routers})
    assert len(both) == 12
    alone = random_study(tmp_path, {"engine.max_num_seqs": seqs})
    turned = random_study(tmp_path, {"fleet.router": routers, "engine.max_num_seqs": seqs})
    for key in ("engine.max_num_seqs", "fleet.router"):
        assert [point[key] for point in both] == [point[key] for point in turned]
    assert [point["engine.max_num_seqs"] for point in both] == [point["engine.max_num_seqs"] for point in alone]
    # More points begin with the fewer ones; another seed has others.
    assert random_study(tmp_path, {"engine.max_num_seqs": seqs}, points=30)[:12] == alone
    assert random_study(tmp_path, {"engine.max_num_seqs": seqs}, seed=4) != alone
    assert {point["fleet.router"] for point in both} == set(routers)


def test_a_scenario_file_and_what_it_names_are_found_from_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenario's paths start at the scenario, those among parameters and baseline at the study."""
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "s.yaml").write_text(yaml.safe_dump(SCENARIO | {"trace": {"file": "a.csv"}}))
    monkeypatch.chdir("/")
    files = {"trace.file": ["b.csv", "/far/c.csv"]}
    made = study(tmp_path, scenario="scenarios/s.yaml", parameters=files, baseline={"trace.file": "d.csv"})
    assert made.scenario_of({}).trace.file == str(tmp_path / "scenarios" / "a.csv")
    assert [made.scenario_of(setting).trace.file for setting in made.settings()] == [
        str(tmp_path / "d.csv"),
        str(tmp_path / "b.csv"),
        "/far/c.csv",
    ]
    named = study(tmp_path, parameters={"model": ["Llama-3.1-8B"], "profile": ["datasheet:l40s"]})
    assert named.settings()[1] == {"model": "Llama-3.1-8B", "profile": "datasheet:l40s"}


def test_a_preset_can_be_varied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point's preset decides what the scenario leaves open, not the preset of the scenario."""
    monkeypatch.setitem(PRESETS, "small", {**PRESETS["vllm-0.11"], "max_num_seqs": 3})
    made = study(tmp_path, parameters={"engine.preset": ["vllm-0.11", "small"]})
    assert [made.scenario_of(setting).engine.max_num_seqs for setting in made.settings()] == [256, 256, 3]
