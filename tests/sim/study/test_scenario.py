"""A scenario says what is meant or is refused in one line; as resolved it means the same again, from anywhere."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ground.errors import UserError
from sim.engine.presets import PRESETS
from sim.fleet.routers import ROUTERS
from sim.study.deployment import deploy
from sim.study.scenario import Scenario, load_scenario, make_scenario, parse_override
from sim.study.simulate import simulate

SYNTH = {
    "requests": 30,
    "arrivals": {"process": "poisson", "rate": 20},
    "lengths": {
        "prompt": {"distribution": "uniform", "low": 10, "high": 400},
        "output": {"distribution": "uniform", "low": 1, "high": 40},
    },
}
SCENARIO: dict[str, Any] = {
    "trace": {"synth": SYNTH},
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"max_num_seqs": 8},
    "fleet": {"replicas": 2, "router": "power_of_two"},
    "slo": {"ttft": 1.0},
    "gpu_hour_price": 2.5,
    "seed": 7,
}
TRACE = "timestamp,in,out\n0,100,5\n0.5,200,6\n0.5,50,1\n"
COLUMNS = {"arrival": "timestamp", "prompt_tokens": "in", "output_tokens": "out"}


def scenario(**overrides: Any) -> Scenario:
    return make_scenario(
        SCENARIO, {key.replace("__", "."): value for key, value in overrides.items()}, Path(), "s.yaml"
    )


def refusal(overrides: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        make_scenario(SCENARIO, overrides, Path(), "s.yaml")
    assert "\n" not in caught.value.message and caught.value.exit_code == 2
    return caught.value.message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sede", 1, "s.yaml: unknown key 'sede'"),
        ("engine.max_seqs", 1, "s.yaml: unknown key 'engine.max_seqs'"),
        ("trace.synth.lenghts", {}, "s.yaml: unknown key 'trace.synth.lenghts'"),
        ("engine.max_num_seqs", "many", "engine.max_num_seqs: Input should be a valid integer"),
        ("engine.max_num_seqs", 2.5, "found 2.5"),
        ("engine.max_num_seqs", 0, "engine.max_num_seqs: Input should be greater than 0, found 0"),
        ("engine.gpu_memory_utilization", 1.1, "found 1.1"),
        ("engine.enable_chunked_prefill", "perhaps", "engine.enable_chunked_prefill"),
        ("engine.scheduling_policy", "lifo", "found 'lifo'"),
        ("engine.max_num_batched_tokens", 7, "engine: max_num_batched_tokens is 7; expected at least max_num_seqs (8)"),
        ("engine.preset", "vllm-9", "unknown preset 'vllm-9', expected one of vllm-0.11, vllm-0.19, reference"),
        ("engine.preset", ["vllm-0.11"], "unknown preset ['vllm-0.11']"),
        ("engine", None, "engine: Input should be a valid dictionary"),
        ("fleet.replicas", -1, "fleet.replicas: Input should be greater than or equal to 0, found -1"),
        ("fleet.router", "nearest", f"unknown router 'nearest', expected one of {', '.join(ROUTERS)}"),
        ("slo.ttft", float("nan"), "slo.ttft"),
        ("slo.attainment", 1.5, "slo.attainment"),
        ("gpu_hour_price", float("inf"), "gpu_hour_price"),
        ("seed", -1, "seed: Input should be greater than or equal to 0, found -1"),
        ("trace.file", "a.csv", "trace: give exactly one of file and synth"),
        ("trace.first", {"seconds": 1, "requests": 1}, "give exactly one of seconds, requests and share"),
        ("trace.synth.arrivals.process", "regular", "trace.synth.arrivals"),
        ("seed.more", 1, "s.yaml: seed.more: 'seed' is 7, expected a mapping of keys"),
    ],
)
def test_a_mistake_names_its_key(key: str, value: Any, said: str) -> None:
    assert said in refusal({key: value})


@pytest.mark.parametrize("key", ["trace", "model", "profile"])
def test_what_has_no_default_must_be_given(key: str) -> None:
    with pytest.raises(UserError, match=f"s.yaml: {key}: Field required"):
        make_scenario({k: v for k, v in SCENARIO.items() if k != key}, {}, Path(), "s.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n- b\n", "found list, expected a mapping"),
        ("a: [\n", "not YAML"),
        ("", "found NoneType"),
        (None, "No such"),
    ],
)
def test_a_file_that_is_no_scenario(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "s.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        load_scenario(path)
    assert str(path) in caught.value.message and "\n" not in caught.value.message


def test_overrides() -> None:
    assert parse_override("engine.max_num_seqs=64") == ("engine.max_num_seqs", 64)
    assert parse_override("trace.first={seconds: 3}") == ("trace.first", {"seconds": 3})
    assert parse_override(" fleet.router = power_of_two") == ("fleet.router", "power_of_two")
    assert parse_override("profile=a=b") == ("profile", "a=b")
    for text in ("seed", "=3", " =3", "seed={", "seed=[1"):
        with pytest.raises(UserError, match="--set") as caught:
            parse_override(text)
        assert "\n" not in caught.value.message


@given(st.integers(1, 2048), st.sampled_from(["engine", "fleet"]))
def test_an_override_changes_its_key_and_nothing_else(value: int, part: str) -> None:
    key = {"engine": "engine.max_num_seqs", "fleet": "fleet.replicas"}[part]
    before, after = scenario().resolved(), make_scenario(SCENARIO, {key: value}, Path(), "s.yaml").resolved()
    name = key.split(".")[1]
    assert after[part].pop(name) == value
    del before[part][name]
    assert before == after


def test_the_given_data_is_not_changed() -> None:
    before = yaml.safe_dump(SCENARIO)
    scenario(engine__max_num_seqs=3, trace__first={"requests": 2})
    assert yaml.safe_dump(SCENARIO) == before


def test_a_preset_fills_in_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", {"max_num_seqs": 3, "max_num_batched_tokens": 99})
    engine = scenario(engine={"preset": "small", "max_num_batched_tokens": 50}).engine
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (3, 50)


def test_resolved_leaves_nothing_open_and_runs_to_the_same_result(tmp_path: Path) -> None:
    first = scenario()
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(first.resolved()))
    again = load_scenario(path)
    assert again == first and again.resolved() == first.resolved()
    one, other = simulate(first), simulate(again)
    assert_frame_equal(one.requests, other.requests, check_exact=True)
    assert_frame_equal(one.steps, other.steps, check_exact=True)
    assert one.metrics == other.metrics and one.assumptions == other.assumptions
    assert one.metrics["requests"]["finished"] == 30


def test_relative_paths_start_at_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    (folder / "t.csv").write_text(TRACE)
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO | {"trace": {"file": "t.csv", "columns": COLUMNS}}))
    monkeypatch.chdir(tmp_path)
    loaded = load_scenario(Path("deep/er/s.yaml"))
    assert loaded.trace.file == str(folder / "t.csv")
    assert loaded.model == "Llama-3.1-8B" and loaded.profile == "datasheet:h100-sxm-80gb"
    # As resolved it may be moved anywhere.
    (tmp_path / "moved.yaml").write_text(yaml.safe_dump(loaded.resolved()))
    monkeypatch.chdir(os.sep)
    assert load_scenario(tmp_path / "moved.yaml") == loaded
    assert simulate(loaded).requests["prompt_tokens"].to_list() == [100, 200, 50]
    resample = {"file": "t.csv", "columns": COLUMNS}
    resampled = load_scenario(folder / "s.yaml", {"trace": {"synth": SYNTH | {"lengths": {"resample": resample}}}})
    assert resampled.trace.synth and resampled.trace.synth.lengths.resample
    assert resampled.trace.synth.lengths.resample.file == str(folder / "t.csv")
    assert set(simulate(resampled).requests["prompt_tokens"]) <= {100, 200, 50}


def test_a_profile_folder_beside_the_scenario(tmp_path: Path) -> None:
    from calibrate.datasheet import datasheet_profile
    from calibrate.model import load_model

    datasheet_profile("l40s", load_model("Llama-3.1-8B"), 1).save(tmp_path / "measured")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO | {"profile": "measured"}))
    loaded = load_scenario(tmp_path / "s.yaml")
    assert loaded.profile == str(tmp_path / "measured")
    assert deploy(loaded).step_times.profile.device == "l40s"


def test_every_input_that_was_not_given_is_an_assumption() -> None:
    given = {assumption.name: assumption for assumption in simulate(scenario(engine__kv_blocks=500)).assumptions}
    assert (given["engine.kv_blocks"].value, given["engine.kv_blocks"].source) == (500, "user")
    predicted = {assumption.name: assumption for assumption in simulate(scenario()).assumptions}
    blocks = deploy(scenario()).config.kv_blocks
    assert (predicted["memory.kv_blocks"].value, predicted["memory.kv_blocks"].source) == (blocks, "assumed")


def test_dropped_rows_are_stated(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TRACE + "1,40,0\n")
    trace = {"file": str(tmp_path / "t.csv"), "columns": COLUMNS}
    run = simulate(scenario(trace=trace))
    dropped = [assumption for assumption in run.assumptions if assumption.name == "trace.dropped"]
    assert [assumption.value for assumption in dropped] == [1] and "no output tokens" in dropped[0].note
    assert len(run.requests) == 3


def test_rejected_requests_are_counted_even_where_nothing_is_left() -> None:
    metrics = simulate(scenario(engine__max_model_len=5)).metrics
    assert metrics["requests"]["rejected"] == 30 and metrics["requests"]["finished"] == 0
    assert metrics["slo"]["met"] is False
    some = simulate(scenario(engine__max_model_len=200))
    over = some.requests["prompt_tokens"] + some.requests["output_tokens"] > 200
    assert 0 < over.sum() < 30
    assert some.metrics["requests"]["rejected"] == over.sum()
    assert some.metrics["requests"]["finished"] == 30 - over.sum()
