"""Memory and shapes of a scenario: what is left open is found and said, and a run has its memory table and numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from calibrate.datasheet import datasheet_profile
from calibrate.model import load_model
from ground.assumption import Assumption
from ground.errors import UserError
from sim.results.folder import read_run, write_run
from sim.results.metric_names import flatten
from sim.study.deployment import Deployment, deploy_profile
from sim.study.scenario import EngineSettings, Scenario, make_scenario, scenario_of
from sim.study.simulate import simulate

MODEL = load_model("Llama-3.1-8B")
DEVICE = "h100-sxm-80gb"
SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 60,
            "arrivals": {"process": "poisson", "rate": 5},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 10, "high": 900},
                "output": {"distribution": "uniform", "low": 1, "high": 60},
            },
        }
    },
    "model": "Llama-3.1-8B",
    "profile": f"datasheet:{DEVICE}",
    "fleet": {"replicas": 2},
    "seed": 3,
}


def scenario(**engine: Any) -> Scenario:
    return make_scenario(SCENARIO, {f"engine.{key}": value for key, value in engine.items()}, Path(), "it")


def deployed(engine: dict[str, Any], **tables: pl.DataFrame) -> tuple[Deployment, dict[str, Assumption]]:
    profile = datasheet_profile(DEVICE, MODEL, 1)
    profile = replace(profile, tables=profile.tables | tables)
    deployment = deploy_profile(EngineSettings.model_validate(engine), MODEL, profile)
    return deployment, {one.name: one for one in deployment.assumptions}


def test_a_run_has_its_memory(tmp_path: Path) -> None:
    chosen = scenario(memory={"leak_per_request": 1_000_000}, shapes={"shape": "sequences", "keep": 4})
    run = simulate(chosen)
    assert run.memory is not None and set(run.memory["replica"]) == {0, 1}
    assert run.metrics["memory"]["reserved_peak"] == run.memory["reserved"].max()
    assert flatten(run.metrics)["memory.fragmentation"] is not None
    assert {"graph", "allocator"} <= set(run.events["kind"])
    write_run(tmp_path / "run", run)
    again = read_run(tmp_path / "run")
    assert again.memory is not None
    assert_frame_equal(again.memory, run.memory)
    assert "Idle share of reserved memory" in (tmp_path / "run" / "report.html").read_text()
    # As resolved it means the same.
    same = simulate(Scenario.model_validate(chosen.resolved()))
    assert same.memory is not None
    assert_frame_equal(same.memory, run.memory)
    assert_frame_equal(same.requests, run.requests)


def test_without_it_nothing_is_said() -> None:
    run = simulate(scenario())
    assert run.memory is None and "memory" not in run.metrics
    assert flatten(run.metrics)["memory.growth"] is None
    assert not [one.name for one in run.assumptions if one.name.startswith(("engine.memory", "engine.shapes"))]


def test_memory_that_costs_nothing_changes_nothing() -> None:
    plain, modelled = simulate(scenario()), simulate(scenario(memory={}))
    assert_frame_equal(plain.requests, modelled.requests)
    assert_frame_equal(plain.steps, modelled.steps)


def test_what_is_left_open_is_found_and_said() -> None:
    deployment, said = deployed({"memory": {"leak_per_minute": 1e6}, "shapes": {}})
    memory, shapes = deployment.memory, deployment.shapes
    assert memory is not None and shapes is not None
    pool = deployment.config.kv_blocks * deployment.config.block_size * MODEL.kv_bytes_per_token()
    outside = next(one.value for name, one in said.items() if name == "memory.non_torch")
    device = next(one.value for name, one in said.items() if name == "memory.device")
    assert memory.device_bytes == device - MODEL.weight_bytes() - pool - outside  # type: ignore[operator]
    for name in ("device_bytes", "malloc_seconds", "free_seconds", "restart_seconds", "leak_tensor_bytes"):
        assert said[f"engine.memory.{name}"].value == getattr(memory, name)
    for name in ("build_seconds", "build_bytes", "eager_launch_seconds"):
        assert said[f"engine.shapes.{name}"].value == getattr(shapes, name)
        assert said[f"engine.shapes.{name}"].source == "assumed"
    assert shapes.build_seconds == pytest.approx(17 / 67)


def test_what_the_profile_measured_is_used() -> None:
    graphs = pl.DataFrame({"phase": ["capture", "capture", "replay"], "sequences": [1, 8, 8], "seconds": [0.1, 0.3, 9]})
    launches = pl.DataFrame({"kernels": [1, 10, 1000], "seconds": [1e-5, 3e-5, 1e-5 + 999 * 2e-6]})
    deployment, said = deployed({"shapes": {}}, graph=graphs, launch=launches)
    shapes = deployment.shapes
    assert shapes is not None and shapes.build_seconds == pytest.approx(0.2)
    kernels = sum(call.calls for call in MODEL.calls())
    assert shapes.eager_launch_seconds == pytest.approx(kernels * 2e-6)
    assert said["engine.shapes.build_seconds"].source == said["engine.shapes.eager_launch_seconds"].source == "measured"


def test_what_is_given_is_not_assumed() -> None:
    memory = {"device_bytes": 1 << 30, "malloc_seconds": 1e-4, "free_seconds": 1e-4, "restart_seconds": 60}
    shapes = {"build_seconds": 1, "build_bytes": 0, "eager_launch_seconds": 0}
    _, said = deployed({"memory": memory, "shapes": shapes})
    assert [name for name in said if name.startswith(("engine.memory", "engine.shapes"))] == [
        "engine.memory.activations"
    ]


def test_a_grown_cache_has_no_pool_and_all_the_memory_beside_the_weights() -> None:
    deployment, said = deployed(
        {"memory": {"kv": "grown"}, "enable_prefix_caching": False, "max_num_seqs": 4, "max_model_len": 2000}
    )
    assert deployment.config.kv_blocks >= 4 * 2000 / deployment.config.block_size
    assert deployment.memory is not None and deployment.memory.device_bytes > 60 << 30  # type: ignore[operator]
    assert "no pool" in said["engine.kv_blocks"].note
    engine = {"engine.memory": {"kv": "grown"}, "engine.enable_prefix_caching": False}
    run = simulate(make_scenario(SCENARIO, {"trace.synth.requests": 15} | engine, Path(), "it"))
    assert run.requests["status"].unique().to_list() == ["finished"]
    assert run.steps["steps"].max() == 1
    assert run.metrics["kv"] == {"blocks": None, "mean": None, "peak": None}, "of a pool that is not there"


def test_without_a_kv_cache_there_is_no_pool() -> None:
    """All the memory beside the weights is for the steps."""
    deployment, said = deployed({"memory": {}, "kv_cache": False})
    grown, _ = deployed({"memory": {"kv": "grown"}, "enable_prefix_caching": False})
    assert deployment.memory is not None and grown.memory is not None
    assert deployment.memory.device_bytes == grown.memory.device_bytes
    assert not [name for name in said if "kv_blocks" in name]
    run = simulate(scenario(memory={}, kv_cache=False))
    assert run.metrics["kv"] == {"blocks": None, "mean": None, "peak": None}
    small = replace(datasheet_profile(DEVICE, MODEL, 1), device_memory=15 << 30)
    with pytest.raises(UserError, match="leave nothing for a step"):
        deploy_profile(EngineSettings.model_validate({"kv_cache": False}), MODEL, small)


def test_a_grown_cache_takes_no_request_longer_than_the_model_reads() -> None:
    lengths = {"trace.synth.lengths.prompt": {"distribution": "constant", "value": MODEL.max_context}}
    grown = {"memory": {"kv": "grown"}, "enable_prefix_caching": False, "max_num_batched_tokens": 8192}
    engine = {f"engine.{key}": value for key, value in grown.items()}
    with pytest.raises(UserError, match=r"request 0 has 131072 prompt \+ .* expected at most the 131072 of Llama"):
        simulate(make_scenario(SCENARIO, lengths | engine, Path(), "it"))
    limited = make_scenario(SCENARIO, lengths | engine | {"engine.max_model_len": 1000}, Path(), "it")
    assert simulate(limited).requests["status"].unique().to_list() == ["rejected"]


def test_copies_that_outlive_a_restart_are_said() -> None:
    engine = {"memory": {}, "swap_blocks": 7, "host_bandwidth": 1e10}
    assert "outlive a restart" in deployed(engine)[1]["engine.memory.swap_blocks"].note
    assert "engine.memory.swap_blocks" not in deployed({"memory": {}})[1]


def test_memory_grows_by_its_leak_whatever_is_restarted() -> None:
    """20 MiB a request, five requests a second, on a device that they fill in less than two minutes."""
    requests = {"trace.synth.requests": 2000, "trace.synth.lengths.output": {"distribution": "constant", "value": 4}}
    memory = {"leak_per_request": 20 << 20, "device_bytes": 12 << 30, "restart_seconds": 5}
    engine = {"engine.memory": memory, "fleet.replicas": 1}
    run = simulate(make_scenario(SCENARIO, requests | engine, Path(), "it"))
    assert run.events.filter(pl.col("kind") == "restart").height >= 2
    assert run.metrics["memory"]["growth"] == pytest.approx(5 * 60 * (20 << 20), rel=0.2)


def test_a_pool_whose_blocks_are_all_reserved_is_refused() -> None:
    with pytest.raises(UserError, match=r"engine.reserved_blocks is 100 and the KV pool has 10 blocks; expected fewer"):
        simulate(scenario(kv_reservation="oracle", reserved_blocks=100, kv_blocks=10))


def test_buckets_pad_the_steps() -> None:
    assert list(scenario(shapes={"buckets": "pow2"}).engine.graph_sizes) == [2**n for n in range(12)]
    assert not scenario(shapes={"buckets": "pow2"}).engine.graphs_decode_only
    decodes = scenario(shapes={"shape": "sequences", "buckets": [4, 16]}).engine
    assert list(decodes.graph_sizes) == [4, 16] and decodes.graphs_decode_only
    assert list(scenario(shapes={}).engine.graph_sizes) == []


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"memory": {}, "data_parallel": 2}, "memory is given and data_parallel is 2"),
        ({"memory": {"kv": "grown"}}, "expected enable_prefix_caching false"),
        ({"memory": {"kv": "grown"}, "enable_prefix_caching": False, "kv_blocks": 9}, "kv_blocks is 9"),
        ({"kv_cache": False, "kv_blocks": 9}, "kv_cache is false and kv_blocks is 9; expected none"),
        ({"kv_cache": False, "reserved_blocks": 9}, "kv_cache is false and reserved_blocks is 9; expected none"),
        (
            {"kv_cache": False, "gpu_memory_utilization": 0.5},
            "kv_cache is false and gpu_memory_utilization is 0.5; expected none",
        ),
        (
            {"memory": {"kv": "grown"}, "enable_prefix_caching": False, "gpu_memory_utilization": 0.5},
            "memory.kv is grown and gpu_memory_utilization is 0.5; expected none",
        ),
        ({"memory": {"settings": "expandable:True"}}, "it: engine.memory.settings: expandable:True is unknown"),
        ({"memory": {"settings": "max_split_size_mb:8"}}, "it: engine.memory.settings: max_split_size_mb is 8"),
        ({"memory": {"settings": "expandable_segments"}}, "it: engine.memory.settings: .* expected name:value"),
        ({"memory": {"allocator": "paged"}}, "allocator is 'paged'; expected one of caching, native, size_class"),
        ({"memory": {"device_bytes": 1000}}, "memory.device_bytes"),
        ({"shapes": {}, "cudagraph_capture_sizes": [1, 2]}, "cudagraph_capture_sizes and shapes are both given"),
        ({"shapes": {"buckets": [4, 2]}}, "buckets are"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(engine: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        scenario(**engine)
    assert "\n" not in error.value.message


def test_a_device_whose_memory_nobody_knows_must_be_told() -> None:
    profile = replace(datasheet_profile(DEVICE, MODEL, 1), device_memory=None)
    with pytest.raises(UserError, match=r"must give engine\.memory\.device_bytes"):
        deploy_profile(EngineSettings(kv_blocks=100, memory={}), MODEL, profile)  # type: ignore[arg-type]
    small = replace(profile, device_memory=20 << 30)
    with pytest.raises(UserError, match="leave nothing for a step"):
        deploy_profile(EngineSettings(kv_blocks=4000, memory={}), MODEL, small)  # type: ignore[arg-type]


def test_a_replica_that_comes_later_has_leaked_nothing_before() -> None:
    minute = 600_000_000
    chosen = scenario(memory={"leak_per_minute": minute})
    crash = {"script": [{"kind": "crash", "at": 9.0, "replica": 0}], "restart_seconds": 0.5}
    run = simulate(scenario_of(chosen.resolved(), {"fleet.failures": crash}))
    leaked = run.memory.filter(pl.col("replica") == 2)  # type: ignore[union-attr]
    assert len(leaked) and (leaked["leaked"] <= minute / 60 * (leaked["time"] - 9.0) + 1).all()
    assert leaked["leaked"].max() > 0
