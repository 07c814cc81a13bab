"""`benchmarks/fidelity.py` end to end: exact where the measurement is a simulation, and close on the public runs."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from bench_folders import ARGUMENTS, META, write_means, write_run
from click.testing import CliRunner, Result
from llmservingsim_folders import META as PROFILE_META
from llmservingsim_folders import write_csv, write_model, write_older, write_variant

from calibrate.importers.llmservingsim import read
from sim.fleet.equal_replicas import equal_replicas
from sim.study.deployment import deploy_profile
from sim.study.scenario import EngineSettings
from validate.vllm_bench import read_bench_run

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fidelity.py"
DATA = Path(os.environ.get("SIMCTL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "groundtruth"
STATISTICS = [f"{name}_{statistic}" for name in ("ttft", "tpot", "e2e") for statistic in ("mean", "p50", "p90", "p99")]
ENGINE = {"preset": "vllm-0.19", "max_num_seqs": 16, "max_num_batched_tokens": 512}
REQUESTS = 60


@pytest.fixture(scope="module")
def fidelity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fidelity", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def workload() -> list[dict[str, Any]]:
    """Of few enough seats for a queue, and every other prompt begins like another."""
    random = np.random.default_rng(5)
    arrivals = np.cumsum(random.exponential(4e5, REQUESTS)).astype(int)
    rows = []
    for i, arrival in enumerate(arrivals):
        prompt = int(random.integers(40, 400))
        ids = [1000 * (i + 1) + block for block in range(prompt // 16)]
        if i % 2:
            ids[:2] = [1, 2]
        lengths = {"input_toks": prompt, "output_toks": int(random.integers(2, 40))}
        rows.append({"arrival_time_ns": int(arrival), **lengths, "chain_ids_16tok": ids})
    return rows


def write_profile(root: Path) -> Path:
    """With unequal batches, so that `--ablate skew` has something to switch off."""
    variant = write_variant(root, **(PROFILE_META | {"skew_profile": {"enabled": True}}))
    rows = [
        (n, n // 4, chunk, 0, short, short * ratio, 100.0 + 20.0 * ratio, 100.0)
        for chunk in (0, 64)
        for n in (8, 32)
        for short in (64, 256)
        for ratio in (2, 4)
    ]
    write_csv(variant / "tp1" / "skew.csv", "n,nb,pc,kp,kvs,kv_big,t_skew_us,t_mean_us", rows)
    return variant


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, whose measured times are those that a simulation of the same engine gives."""
    root = tmp_path_factory.mktemp("data") / "made"
    profile = read(str(write_profile(root)), None, 1)
    rows = workload()
    folder = write_run(root / "runs" / "RTX4090-Small", rows, None)
    write_means(folder, 1.0, 1.0, 1.0)
    trace = read_bench_run(folder).trace.requests
    deployment = deploy_profile(EngineSettings.model_validate(ENGINE), profile.shape, profile)
    simulated = equal_replicas(trace, deployment.config, deployment.step_times).run().requests
    clock = 50.0  # of the engine, which is as much behind the front end's
    times = [
        (100.0 + arrival, *(clock + at for at in (arrival, scheduled, first, finish)))
        for arrival, scheduled, first, finish in simulated.select(
            "arrival", "first_scheduled", "first_token", "finish"
        ).iter_rows()
    ]
    cache = META["kv_cache"] | {"num_gpu_blocks": deployment.config.kv_blocks}
    write_run(folder, rows, times, meta=META | {"kv_cache": cache})
    return root.parent


def ask(fidelity: ModuleType, *arguments: object) -> Result:
    return CliRunner().invoke(fidelity.main, [str(argument) for argument in arguments])


def results(fidelity: ModuleType, *arguments: object) -> list[dict[str, Any]]:
    answer = ask(fidelity, *arguments, "--json")
    assert answer.exit_code == 0, answer.output
    return list(json.loads(answer.output)["runs"])


def errors_of(result: dict[str, Any]) -> dict[str, float]:
    return {name: row["error"] for name, row in result["metrics"].items()}


def test_a_simulated_measurement_is_predicted_exactly(data: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--data", str(data), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer.keys() == {"runs"}
    (result,) = answer["runs"]
    assert result.keys() == {"run", "seconds", "kv_blocks", "metrics", "ape", "assumptions", "extrapolated"}
    assert result["run"] == "RTX4090-Small" and result["seconds"] > 0
    assert result["kv_blocks"].keys() == {"predicted", "measured"}
    assert result["kv_blocks"]["predicted"] == result["kv_blocks"]["measured"] > 1000
    assert list(result["metrics"]) == ["output_tok_s", *STATISTICS, "unqueued_ttft_p50"]
    for name, row in result["metrics"].items():
        assert row.keys() == {"predicted", "measured", "error"}
        assert row["predicted"] > 0 and row["predicted"] == pytest.approx(row["measured"], rel=1e-6), name
        assert row["error"] == pytest.approx(0.0, abs=1e-6), name
    assert result["ape"].keys() == {"ttft", "tpot", "e2e"}
    for error in result["ape"].values():
        assert error == {"mean": pytest.approx(0.0, abs=1e-6), "p50": pytest.approx(0.0, abs=1e-6)}
    assert {"engine.skew", "memory.kv_blocks"} <= {one["name"] for one in result["assumptions"]}


def test_measured_blocks_are_copied(fidelity: ModuleType, data: Path) -> None:
    (result,) = results(fidelity, "--data", data, "--kv-blocks", "measured")
    assert result["kv_blocks"]["predicted"] is None and result["kv_blocks"]["measured"] > 1000
    assert max(map(abs, errors_of(result).values())) < 1e-6
    stated = {one["name"]: one for one in result["assumptions"]}
    assert stated["engine.kv_blocks"]["source"] == "user"
    assert "memory.kv_blocks" not in stated


@pytest.mark.parametrize(
    ("mechanism", "as_expected"),
    [
        ("async", lambda errors: errors["ttft_p50"] < 0),  # an arrival waits a step less
        ("skew", lambda errors: errors["tpot_mean"] < 0),  # unequal contexts cost nothing
        ("padding", lambda errors: errors["tpot_mean"] < 0),  # no token is computed in vain
        ("prefix", lambda errors: errors["ttft_mean"] > 0),  # prompts are computed whole
    ],
)
def test_an_ablation_takes_away_what_its_mechanism_does(
    fidelity: ModuleType, data: Path, mechanism: str, as_expected: Callable[[dict[str, float]], bool]
) -> None:
    (result,) = results(fidelity, "--data", data, "--ablate", mechanism)
    errors = errors_of(result)
    assert as_expected(errors), errors
    assert all(abs(error) < 1.0 for error in errors.values())
    assert result["ape"]["e2e"]["mean"] > 1e-5


def test_runs_are_chosen_by_name_and_found_a_level_down(fidelity: ModuleType, data: Path, tmp_path: Path) -> None:
    assert [one["run"] for one in results(fidelity, "--data", data, "--run", "RTX4090-Small")] == ["RTX4090-Small"]
    assert [one["run"] for one in results(fidelity, "--data", data / "made")] == ["RTX4090-Small"]
    unknown = ask(fidelity, "--data", data, "--run", "no-such-run")
    assert unknown.exit_code == 2 and "--run no-such-run: no such run in" in unknown.output
    nothing = ask(fidelity, "--data", tmp_path)
    assert nothing.exit_code == 2 and "no run found; expected runs/NAME/workload.parquet" in nothing.output


def test_without_json_it_prints_tables(fidelity: ModuleType, data: Path) -> None:
    answer = ask(fidelity, "--data", data)
    assert answer.exit_code == 0
    for word in ("RTX4090-Small", "unqueued_ttft_p50", "e2e per request"):
        assert word in answer.output, word


def test_a_run_without_its_profile_is_refused(fidelity: ModuleType, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "lonely", workload(), None)
    write_means(tmp_path / "runs" / "lonely", 1.0, 1.0, 1.0)
    answer = ask(fidelity, "--data", tmp_path)
    assert answer.exit_code == 2
    assert "profiles/RTX4090/made/Small: no such profile, which run lonely needs" in " ".join(answer.output.split())


def test_a_run_of_means_with_a_profile_of_the_older_form(fidelity: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "h100-small"
    write_older(folder / "profile", degrees=(1,))
    write_model(folder, name="x").rename(folder / "model.json")
    write_run(folder, workload(), None, meta={"engine_kwargs": ARGUMENTS})
    write_means(folder, 100.0, 20.0, 5.0)
    (result,) = results(fidelity, "--data", tmp_path)
    known = {name: row["measured"] for name, row in result["metrics"].items() if row["measured"] is not None}
    assert known == pytest.approx({"output_tok_s": 100.0, "ttft_mean": 0.02, "tpot_mean": 0.005})
    assert "unqueued_ttft_p50" not in result["metrics"]
    for name, row in result["metrics"].items():
        expected = None if name not in known else row["predicted"] / known[name] - 1
        assert row["error"] == (None if expected is None else pytest.approx(expected))
    assert result["ape"] == {name: {"mean": None, "p50": None} for name in ("ttft", "tpot", "e2e")}


def test_a_gpu_of_unknown_memory_needs_the_block_count(fidelity: ModuleType, tmp_path: Path) -> None:
    variant = write_variant(tmp_path)
    strange = PROFILE_META | {"gpu": "unheard of"}
    (variant / "meta.yaml").write_text(yaml.safe_dump(strange))
    meta = {key: value for key, value in META.items() if key != "hardware"}
    write_run(tmp_path / "runs" / "strange", workload(), None, meta=meta)
    write_means(tmp_path / "runs" / "strange", 1.0, 1.0, 1.0)
    answer = ask(fidelity, "--data", tmp_path)
    assert answer.exit_code == 2 and "says how much memory unheard of has" in " ".join(answer.output.split())
    (result,) = results(fidelity, "--data", tmp_path, "--kv-blocks", "measured")
    assert result["kv_blocks"] == {"predicted": None, "measured": 700}


# Real runs


def real(fidelity: ModuleType, name: str) -> dict[str, Any]:
    if not (DATA / "vllm-0.19" / "runs" / name).is_dir():
        pytest.skip(f"public run {name} is not in {DATA}; set SIMCTL_DATA to the folder that holds groundtruth/")
    (result,) = results(fidelity, "--data", DATA, "--run", name)
    return result


def test_vllm_on_an_rtx_4090(fidelity: ModuleType) -> None:
    result = real(fidelity, "RTX4090-Llama-3.1-8B")
    errors = errors_of(result)
    assert result["kv_blocks"]["predicted"] == pytest.approx(result["kv_blocks"]["measured"], rel=0.01)
    assert abs(errors["output_tok_s"]) < 0.01
    assert abs(errors["tpot_mean"]) < 0.01
    assert abs(errors["ttft_mean"]) < 0.02 and abs(errors["e2e_mean"]) < 0.01
    assert all(math.isfinite(error) for error in errors.values())


def test_vllm_on_an_rtx_pro_6000(fidelity: ModuleType) -> None:
    result = real(fidelity, "RTXPRO6000-Llama-3.1-8B")
    errors = errors_of(result)
    assert abs(errors["tpot_mean"]) < 0.015
    assert abs(errors["output_tok_s"]) < 0.025 and abs(errors["e2e_mean"]) < 0.025
    assert result["kv_blocks"]["measured"] is None
