"""Which settings there are, and which a sampler proposes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.study.search.objectives import parse_objective
from sim.study.search.sampler import Answer, Method, Sampler, setting_key
from sim.study.search.space import Choice, Setting, Space, exists

POLICIES: dict[str, Any] = {
    "policy": ["plain", "window", "adaptive"],
    "seconds": {"values": [0.1, 0.2], "when": {"policy": ["window", "adaptive"]}},
    "factor": {"values": [0.5, 0.8, 1.0], "when": {"policy": "adaptive", "seconds": 0.1}},
}


def test_a_parameter_is_there_only_under_what_it_names() -> None:
    space = Space(parameters=POLICIES)
    assert list(space.settings()) == [
        {"policy": "plain"},
        {"policy": "window", "seconds": 0.1},
        {"policy": "window", "seconds": 0.2},
        {"policy": "adaptive", "seconds": 0.1, "factor": 0.5},
        {"policy": "adaptive", "seconds": 0.1, "factor": 0.8},
        {"policy": "adaptive", "seconds": 0.1, "factor": 1.0},
        {"policy": "adaptive", "seconds": 0.2},
    ]
    assert space.size(7) == space.size(100) == 7 and space.size(6) is None
    endless = Space(parameters={**POLICIES, "more": {"low": 0, "high": 1, "when": {"policy": "plain"}}})
    assert endless.size(100) is None


def test_a_space_too_large_to_list_is_not_listed() -> None:
    space = Space(parameters={str(place): list(range(10)) for place in range(30)})
    assert space.size(1_000) is None


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"a": []}, "parameters.a: the list is empty"),
        ({"a": {"values": []}}, "values"),
        ({"a": {"values": [1], "when": {"b": 1}}, "b": [1]}, "parameters.a: when names b; expected a parameter before"),
        ({"a": {"low": 2, "high": 1}}, "expected low < high"),
        ({"a": {"low": 1, "high": 2, "wenn": {}}}, "wenn"),
        ({}, "parameters"),
    ],
)
def test_no_space(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Space(parameters=parameters)


@pytest.mark.parametrize(
    ("values", "ordered"),
    [([1, 2, 8], True), ([0.5], True), ([2, 1], False), ([1, 1], False), ([True, False], False), (["a", "b"], False)],
)
def test_rising_numbers_are_near_each_other(values: list[Any], ordered: bool) -> None:
    assert Choice(values=values).ordered == ordered


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to four parameters, of which later ones may exist under earlier ones."""
    parameters: dict[str, Any] = {}
    for name in "abcd"[: draw(st.integers(1, 4))]:
        values = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
        earlier = list(parameters)
        under = draw(st.sampled_from([None, *earlier]))
        when = {} if under is None else {under: draw(st.sampled_from(parameters[under]["values"]))}
        parameters[name] = {"values": values, "when": when}
    return Space(parameters=parameters)


@given(spaces())
def test_settings_are_distinct_whole_and_allowed(space: Space) -> None:
    made = list(space.settings())
    assert len({setting_key(setting) for setting in made}) == len(made) == space.size(1_000)
    for setting in made:
        for key, parameter in space:
            before = {name: value for name, value in setting.items() if name < key}
            assert (key in setting) == exists(parameter, before)
            assert isinstance(parameter, Choice) and (key not in setting or setting[key] in parameter.values)


ENDLESS = Space(
    parameters={
        "engine": ["a", "b"],
        "seqs": {"low": 1, "high": 65, "log": True, "integer": True},
        "share": {"low": 0.25, "high": 1.0, "when": {"engine": "b"}},
        "step": [1, 2, 4, 8],
    }
)


def rounds(method: Method, *, seed: int = 1, batches: int = 4) -> list[list[Setting]]:
    """What a sampler proposes when few sequences, and of them few steps, are good; each third breaks a limit."""
    wanted = [parse_objective("ttft.p99"), parse_objective("preemptions")]
    sampler = Sampler(ENDLESS, wanted, method, batch=6, seed=seed)
    proposed = []
    for _ in range(batches):
        batch = sampler.ask(6)
        proposed.append(batch)
        for setting in batch:
            values = [float(setting["seqs"]), float(setting["step"])] if setting["seqs"] < 50 else None
            sampler.tell(setting, Answer(values, {"limit": max(0.0, setting["seqs"] - 30.0)}))
    return proposed


@pytest.mark.parametrize("method", ["tpe", "nsga2", "random"])
def test_proposals_follow_from_seed_and_answers(method: Method) -> None:
    once = rounds(method)
    assert once == rounds(method) != rounds(method, seed=2)
    flat = [setting for batch in once for setting in batch]
    assert len(flat) == 24 and len({setting_key(setting) for setting in flat}) == 24
    for setting in flat:
        assert list(setting) == [key for key, parameter in ENDLESS if exists(parameter, setting)]
        assert isinstance(setting["seqs"], int) and 1 <= setting["seqs"] < 65
        assert setting["step"] in (1, 2, 4, 8)
        assert ("share" in setting) == (setting["engine"] == "b")
        assert 0.25 <= setting.get("share", 0.5) <= 1.0


@pytest.mark.parametrize("method", ["tpe", "nsga2"])
def test_a_sampler_learns(method: Method) -> None:
    """The last proposals are nearer to what is good, and keep the limit more often, than the first."""
    proposed = rounds(method, batches=10)
    first, last = ([setting["seqs"] for batch in part for setting in batch] for part in (proposed[:2], proposed[-2:]))
    assert sum(last) < sum(first)


def test_a_space_that_is_used_up_ends() -> None:
    sampler = Sampler(Space(parameters={"a": [1, 2, 3]}), [parse_objective("ttft.p99")], "random", batch=2, seed=0)
    seen = []
    while batch := sampler.ask(2):
        seen += batch
        for setting in batch:
            sampler.tell(setting, Answer([1.0], {}))
    assert sorted(setting["a"] for setting in seen) == [1, 2, 3]


def test_the_journal_is_optunas(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    sampler = Sampler(Space(parameters={"a": [1, 2, 3]}), [parse_objective("ttft.p99")], "tpe", batch=2, seed=0)
    for setting in sampler.ask(2):
        sampler.tell(setting, Answer([setting["a"] / 2], {"limit": 0.0}))
    for _ in range(2):  # as when the same command is called again
        sampler.write(tmp_path / "optuna.journal")
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "optuna.journal"))
    )
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert sorted((trial.params["a"], trial.value) for trial in trials)[0][1] in (0.5, 1.0)


@settings(max_examples=5)
@given(st.integers(0, 100))
def test_random_draws_are_of_the_space(seed: int) -> None:
    sampler = Sampler(Space(parameters=POLICIES), [parse_objective("ttft.p99")], "random", batch=7, seed=seed)
    allowed = [setting_key(setting) for setting in Space(parameters=POLICIES).settings()]
    assert all(setting_key(setting) in allowed for setting in sampler.ask(7))
