"""A scenario with many models: its weight cache runs, says what it assumes, and its numbers have names."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from calibrate.model import load_model
from ground.errors import UserError
from sim.results.folder import read_run, write_run
from sim.results.metric_names import flatten, metric
from sim.study.scenario import Scenario, load_scenario, make_scenario, scenario_of
from sim.study.simulate import simulate

TRACE = "time,in,out,name\n" + "".join(f"{second},100,5,{'abc'[second % 3]}\n" for second in range(0, 90, 5))
COLUMNS = {"arrival": "time", "prompt_tokens": "in", "output_tokens": "out", "model": "name"}


def scenario(folder: Path, cache: dict[str, Any] | None) -> Scenario:
    (folder / "t.csv").write_text(TRACE)
    data = {
        "trace": {"file": "t.csv", "columns": COLUMNS},
        "model": "Llama-3.1-8B",
        "profile": "datasheet:h100-sxm-80gb",
        "fleet": {"weight_cache": cache},
    }
    return make_scenario(data, {}, folder, "s.yaml")


def test_models_are_as_large_as_the_scenario_s(tmp_path: Path) -> None:
    size = load_model("Llama-3.1-8B").weight_bytes()
    run = simulate(scenario(tmp_path, {"load_bandwidth": 5e9, "bytes_of": {"b": 10**9}}))
    assert run.events.filter(pl.col("kind") == "weights_loaded")["amount"].to_list() == [size, size, 10**9]
    assert run.metrics["requests"]["finished"] == 18
    assert metric(run.metrics, "weights.loads") == 3 and metric(run.metrics, "weights.hit_rate") == 15 / 18
    assert metric(run.metrics, "weights.wait.max") == pytest.approx(size / 5e9)
    assert run.requests["queue"].max() == pytest.approx(size / 5e9)


def test_what_is_assumed(tmp_path: Path) -> None:
    def assumed(cache: dict[str, Any]) -> dict[str, tuple[Any, str]]:
        given = simulate(scenario(tmp_path, cache)).assumptions
        return {
            each.name.removeprefix("fleet.weight_cache."): (each.value, each.source)
            for each in given
            if each.name.startswith("fleet.weight_cache.")
        }

    size = load_model("Llama-3.1-8B").weight_bytes()
    assert assumed({"load_bandwidth": "unlimited"}) == {
        "model_bytes": (size, "assumed"),
        "capacity": ("unlimited", "assumed"),
        "load_bandwidth": ("unlimited", "user"),
        "load_latency": (0.0, "assumed"),
        "engine": ("one a host", "assumed"),
    }
    given = {"load_bandwidth": 1e9, "load_latency": 2, "capacity_models": 2, "model_bytes": 7, "preload": ["a"]}
    assert assumed(given) == {
        "model_bytes": (7, "user"),
        "capacity": ("2 models", "user"),
        "load_bandwidth": (1e9, "user"),
        "load_latency": (2.0, "user"),
        "engine": ("one a host", "assumed"),
        "preload": (1, "user"),
    }


def test_requests_that_name_no_model_ask_for_the_scenario_s(tmp_path: Path) -> None:
    named = scenario(tmp_path, {"load_bandwidth": 5e9})
    trace = named.trace.load(tmp_path, 0)
    trace.requests = trace.requests.drop("model")
    run = simulate(named, trace)
    unnamed = [each.value for each in run.assumptions if each.name == "fleet.weight_cache.unnamed"]
    assert unnamed == [18] and run.metrics["weights"]["loads"] == 1
    assert run.events["detail"].to_list() == ["miss Llama-3.1-8B"] * 2


def test_a_run_with_a_weight_cache_is_written_and_runs_again(tmp_path: Path) -> None:
    first = scenario(tmp_path, {"load_bandwidth": "unlimited", "ttl": 6.0, "preload": ["a"]})
    run = simulate(first)
    write_run(tmp_path / "run", run)
    back = read_run(tmp_path / "run")
    assert flatten(back.metrics) == flatten(run.metrics) and back.events.equals(run.events)
    assert "Weight cache hits" in (tmp_path / "run" / "report.html").read_text()
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(run.scenario))
    assert load_scenario(tmp_path / "again.yaml") == first
    # Without a cache there is nothing to say of it.
    plain = simulate(scenario(tmp_path, None))
    write_run(tmp_path / "plain", plain)
    assert metric(plain.metrics, "weights.loads") is None and "weights" not in plain.metrics
    assert "Weight cache" not in (tmp_path / "plain" / "report.html").read_text()


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ({}, "s.yaml: fleet.weight_cache.load_bandwidth: Field required"),
        ({"load_bandwidth": 1, "evict": "lru"}, "s.yaml: unknown key 'fleet.weight_cache.evict'"),
        ({"load_bandwidth": 1, "eviction": "fifo"}, "unknown eviction 'fifo', expected one of lru, lfu"),
        ({"load_bandwidth": -1}, "fleet.weight_cache.load_bandwidth"),
        ({"load_bandwidth": 1, "bytes_of": {"a": 0}}, "fleet.weight_cache.bytes_of.a"),
    ],
)
def test_a_mistake_names_its_key(tmp_path: Path, cache: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        scenario(tmp_path, cache)
    assert said in caught.value.message and "\n" not in caught.value.message


def test_a_host_too_small_for_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"capacity_bytes is 1000000000; expected at least the \d+ bytes of model 'a'"):
        simulate(scenario(tmp_path, {"load_bandwidth": 1e9, "capacity_bytes": 10**9}))


def test_a_host_that_comes_later_holds_what_is_preloaded_from_then_on(tmp_path: Path) -> None:
    """Not before it is ready, and no older than that: it does not give it up as it comes."""
    chosen = scenario(tmp_path, {"load_bandwidth": 5e9, "preload": ["a"], "ttl": 8.0, "peer_bandwidth": 1e15})
    scaled = {"policy": "schedule", "max": 2, "sync_interval": 1, "steps": [{"at": 20, "replicas": 2}]}
    fleet = {"fleet.autoscaler": scaled, "fleet.cold_start": {"engine_init": 3.0, "graph_capture": 0.0}}
    run = simulate(scenario_of(chosen.resolved(), fleet))
    own = run.events.filter(pl.col("kind").is_in(["weights_loaded", "weights_evicted"]))
    first, second = (own.filter(pl.col("replica") == replica) for replica in (0, 1))
    assert first.row(0, named=True)["time"] == 0.0
    assert second.select("time", "detail").row(0) == (23.0, "preload a")
    assert not second.filter((pl.col("kind") == "weights_evicted") & (pl.col("time") < 31.0)).height
    assert not run.events.filter(
        (pl.col("kind") == "weights_sent") & (pl.col("replica") == 1) & (pl.col("time") < 23)
    ).height
