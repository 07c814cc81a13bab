"""The GPU campaign at toy size on the CPU: the same code, without the packages that a bare machine lacks."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distributions
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch

from calibrate.microbench.grid import CUDA_GRAPH_SIZES, quick_grid, short_cuda_grid
from calibrate.microbench.workbench import Workbench
from calibrate.model import load_model
from calibrate.profile import KEYS, Profile
from ground.errors import UserError
from sim.results.tables import REQUESTS, STEPS

ROOT = Path(__file__).resolve().parents[1]
CAMPAIGN = ROOT / "benchmarks" / "gpu_campaign.py"
ABSENT = ("plotly", "zstandard", "aiohttp", "hypothesis", "psutil")
BLOCKER = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.split(".")[0] in {ABSENT!r} else find(name, *more)
"""


def run_campaign(out: Path, bare: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a Python that finds none of `ABSENT`, nor a C++ compiler."""
    (bare / "sitecustomize.py").write_text(BLOCKER)
    environment = os.environ | {"PYTHONPATH": str(bare), "CXX": "none", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(CAMPAIGN), "--out", str(out), "--device", "cpu", "--minutes", "60", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a whole campaign, and that of the import blocker; it takes a minute, so what needs it is `slow`."""
    out, bare = tmp_path_factory.mktemp("campaign") / "out", tmp_path_factory.mktemp("bare")
    ran = run_campaign(out, bare)
    assert ran.returncode == 0, ran.stderr
    return out, bare


@pytest.fixture(scope="module")
def campaign() -> ModuleType:
    """The script as a module; `campaign.*` can be imported then."""
    spec = importlib.util.spec_from_file_location("gpu_campaign", CAMPAIGN)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "campaign.json").read_text())["parts"]
    return found


def test_the_blocker_blocks(tmp_path: Path) -> None:
    """Or the next tests would prove nothing."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    for name in ABSENT:
        command = [sys.executable, "-P", "-c", f"import {name}"]
        ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        assert f"No module named '{name}'" in ran.stderr


@pytest.mark.slow
def test_every_part_is_done_or_says_why_not(whole: tuple[Path, Path]) -> None:
    found = parts(whole[0])
    assert {name: part["status"] for name, part in found.items()} == {
        "ceilings": "done",
        "profile": "done",
        "check": "done",
        "recordings": "skipped",
        "shapes": "done",
        "copies": "done",
        "power": "skipped",
    }
    assert found["recordings"]["reason"].startswith("needs cuda") and found["power"]["reason"] == "needs cuda"
    modes = found["shapes"]["found"]["modes"]
    assert modes["eager, dynamic"] == "done" and modes["graph, bucketed"] == "needs cuda"
    assert modes["compile_static, dynamic"] == "needs a C++ compiler; none is not found"
    about = json.loads((whole[0] / "campaign.json").read_text())
    assert about["device"] == "cpu" and "torch" in about["machine"]["versions"] and about["begun"] <= about["finished"]
    assert all(part["seconds"] > 0 for part in found.values())


@pytest.mark.slow
def test_ceilings_bound_what_is_measured(whole: tuple[Path, Path]) -> None:
    found = parts(whole[0])["ceilings"]["found"]
    assert found["copy_bytes_per_second"] > 0 and found["matrix_flops_per_second"] > 0
    for step in found["decode_steps"]:
        assert step["ratio"] == pytest.approx(step["seconds"] / step["least"])
    model = load_model("tiny-llama")
    one, more = found["decode_steps"]
    per_second = found["copy_bytes_per_second"]
    more_bytes = (more["sequences"] - one["sequences"]) * 64 * model.kv_bytes_per_token()
    assert (more["least"] - one["least"]) * per_second == pytest.approx(more_bytes)
    assert found["prefill_steps"][0]["share_of_matrix_rate"] > 0


@pytest.mark.slow
def test_profiles_are_whole(whole: tuple[Path, Path]) -> None:
    out = whole[0]
    first, second = Profile.load(out / "profile"), Profile.load(out / "profile-second")
    assert first.shape.name == "tiny-llama" and second.shape.name == "tinier-llama"
    assert {"dense", "per_sequence", "attention", "overhead"} <= set(first.tables)
    # The second model's host overhead is the first one's, and the profile says so.
    assert second.table("overhead").equals(first.table("overhead"))
    assert "overhead is that of tiny-llama" in second.provenance.note
    assert not (out / "profile-second-kernels").exists()


@pytest.mark.slow
def test_the_check_has_both_sides_of_every_replay(whole: tuple[Path, Path]) -> None:
    check, found = whole[0] / "check", parts(whole[0])["check"]["found"]
    for model, loads, policies in (("tiny-llama", 3, 5), ("tinier-llama", 2, 2)):
        assert len(found[model]["errors"]) == loads
        requests = pl.read_parquet(check / f"{model}.requests.parquet")
        steps = pl.read_parquet(check / f"{model}.steps.parquet")
        assert set(REQUESTS) <= set(requests.columns) and set(STEPS) <= set(steps.columns)
        assert set(requests["status"]) == {"finished"}
        groups = requests.group_by("load", "policy", "side").agg(pl.col("request_id").sort())
        assert len(groups) == loads * policies * 2
        for (_load,), of_load in groups.group_by("load"):
            assert of_load["request_id"].n_unique() == 1
        for load, by_policy in found[model]["errors"].items():
            validation = json.loads((check / f"{model}.{load}.validation.json").read_text())
            assert [policy["name"] for policy in validation["policies"]] == list(by_policy)
            assert validation["engine"]["model"] == model
            for policy in validation["policies"]:
                expected = policy["metrics"]["e2e.mean"]["error"]
                assert by_policy[policy["name"]]["e2e.mean"] == pytest.approx(expected)
        capacity = found[model]["capacity"]
        measured = requests.filter((pl.col("load") == "overload") & (pl.col("side") == "measured"))
        baseline = measured.filter(pl.col("policy") == "baseline")
        span = baseline["finish"].max() - baseline["arrival"].min()
        assert capacity["measured"] == pytest.approx(len(baseline) / span)
        trace = pl.read_parquet(check / f"{model}.medium.trace.parquet")
        assert set(trace["priority"]) == {0, 1}
    assert not list(check.glob("*.html"))


@pytest.mark.slow
def test_tables_of_shapes_and_copies(whole: tuple[Path, Path]) -> None:
    out = whole[0]
    shapes = pl.read_parquet(out / "shapes.parquet")
    assert set(shapes["mode"]) == {"eager"} and set(shapes["lengths"]) == {"dynamic", "bucketed"}
    copies = pl.read_parquet(out / "copies.parquet")
    assert set(copies["beside"]) == {"nothing", "decoding"} and (copies["seconds"] > 0).all()
    assert (copies.filter(pl.col("beside") == "decoding")["step_seconds"] > 0).all()
    swaps = pl.read_parquet(out / "swaps.parquet")
    model = load_model("tiny-llama")
    assert swaps["bytes"].to_list() == [16 * blocks * model.kv_bytes_per_token() for blocks in swaps["blocks"]]
    assert swaps["blocks"].to_list() == [-(-context // 16) for context in swaps["context"]]
    start = parts(out)["copies"]["found"]["start_up"]
    assert start["disk_to_host_seconds"] > 0 and not (out / ".weights.bin").exists()


@pytest.mark.slow
def test_what_is_done_is_not_done_again(whole: tuple[Path, Path]) -> None:
    out, bare = whole
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    ran = run_campaign(out, bare, "--part", "profile", "--part", "check", "--part", "ceilings")
    assert ran.returncode == 0 and "at most" not in ran.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before


@pytest.mark.slow
def test_pages_are_written_later_and_elsewhere(whole: tuple[Path, Path], campaign: ModuleType, tmp_path: Path) -> None:
    """From a copy of the folder, here where plotly is."""
    moved = tmp_path / "moved"
    shutil.copytree(whole[0], moved)
    before = (moved / "check" / "tiny-llama.medium.validation.json").read_text()
    for path in (moved / "check").glob("*.json"):
        if "validation" in path.name:
            path.unlink()
    campaign.write_pages(moved)
    pages = sorted(path.name for path in (moved / "check").glob("*.html"))
    assert pages == [
        *(f"tinier-llama.{load}.report.html" for load in ("medium", "overload")),
        *(f"tiny-llama.{load}.report.html" for load in ("low", "medium", "overload")),
    ]
    assert (moved / "check" / "tiny-llama.medium.validation.json").read_text() == before
    with pytest.raises(UserError, match="expected the folder of a campaign"):
        campaign.write_pages(tmp_path)


@pytest.mark.slow
def test_other_folders_are_left_alone(whole: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    ran = run_campaign(tmp_path / "letters", whole[1])
    assert ran.returncode == 2 and "holds something else" in ran.stderr


def test_a_campaign_stays_on_its_device(campaign: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "campaign.json").write_text(json.dumps({"device": "cpu", "parts": {}}))
    with pytest.raises(UserError, match="is a campaign with --device cpu; expected the same"):
        campaign.read_campaign(tmp_path, "cuda")


def test_a_part_whose_time_is_up_is_stopped_and_not_failed(campaign: ModuleType, tmp_path: Path) -> None:
    outcome = campaign.run_part("profile", tmp_path, "cpu", time.time())
    assert outcome["status"] == "stopped" and "time" in outcome["reason"]


def test_a_part_goes_on_with_what_it_had_found(campaign: ModuleType, tmp_path: Path) -> None:
    from campaign.child import found_before

    found = {"start_up": {"seconds": 1.0}}
    for status, kept in (("stopped", found), ("failed", {}), ("done", {})):
        parts = {"copies": {"status": status, "found": found}}
        (tmp_path / "campaign.json").write_text(json.dumps({"device": "cpu", "parts": parts}))
        assert found_before(tmp_path, "copies") == kept
        assert found_before(tmp_path, "shapes") == {}


def test_time_that_is_up_stops_a_gpu_and_not_a_toy(campaign: ModuleType, tmp_path: Path) -> None:
    from campaign.work import TimeUp, Work

    Work("cpu", tmp_path, until=0.0).need(30, "the second model")
    with pytest.raises(TimeUp, match="before the second model"):
        Work("cuda", tmp_path, until=time.time() + 20).need(30, "the second model")


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, str(CAMPAIGN), "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2 and "torch finds no CUDA device here" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_part_that_breaks_says_how(campaign: ModuleType, tmp_path: Path) -> None:
    outcome = campaign.run_part("no_such_part", tmp_path, "cpu", time.time() + 600)
    assert outcome["status"] == "failed" and "ModuleNotFoundError" in outcome["reason"] and outcome["traceback"]
    assert not list(tmp_path.iterdir())


def test_the_version_is_known_without_installing(
    campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(campaign, "version", absent)
    paths = campaign.environment(tmp_path)["PYTHONPATH"].split(os.pathsep)
    stated = [found.version for found in distributions(name="simctl", path=[str(tmp_path / ".version")])]
    assert str(tmp_path / ".version") in paths and str(ROOT) in paths
    assert stated and f'version = "{stated[0]}"' in (ROOT / "pyproject.toml").read_text()


def test_power_is_watched_and_kept_in_the_profile(campaign: ModuleType, tmp_path: Path) -> None:
    from campaign import power
    from campaign.profile import add_power
    from campaign.work import Work

    steps: list[int] = []
    watts = iter(range(100, 100_000))
    row = power.watch(lambda: steps.append(1), lambda: float(next(watts)), settle=0.0, seconds=0.1)
    assert row["samples"] >= 1 and 100 <= row["watts_p10"] <= row["watts"] <= row["watts_p90"] and steps

    table = pl.DataFrame([{"state": "idle", "sequences": 0} | row, {"state": "decode", "sequences": 8} | row])
    work = Work("cpu", tmp_path, time.time() + 600)
    table.write_parquet(work.power)
    add_power(work)
    assert not work.profile.exists()  # there is none yet
    dense = pl.DataFrame({"layer": ["qkv_proj"], "tokens": [1], "seconds": [1.0]})
    make_profile({"dense": dense}).save(work.profile)
    add_power(work)
    kept = Profile.load(work.profile).tables["power"]
    assert kept.equals(table) and set(KEYS["power"]) <= set(kept.columns)


class FakeNvml(ModuleType):
    """NVIDIA's module as far as the campaign calls it; `instant` is what the field of that name returns."""

    NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS = 186, 0

    class NVMLError(Exception):
        pass

    def __init__(self, instant: int) -> None:
        super().__init__("pynvml")
        self.instant = instant

    def nvmlDeviceGetFieldValues(self, handle: str, fields: list[int]) -> list[SimpleNamespace]:
        assert (handle, fields) == ("gpu", [186])
        return [SimpleNamespace(nvmlReturn=self.instant, value=SimpleNamespace(uiVal=321_500))]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 280_000

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    looks = 0

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return "gpu"

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        self.looks += 1
        return {self.NVML_CLOCK_SM: 1980 - self.looks, self.NVML_CLOCK_MEM: 2619}[clock]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 40


def test_the_meter_reads_this_moment_or_else_the_average(campaign: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from campaign.power import meter

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(instant=0))
    assert meter("gpu")() == 321.5
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(instant=3))  # not supported
    assert meter("gpu")() == 280.0


def test_clocks_are_watched_while_a_part_runs(campaign: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from campaign.machine import ClockWatch

    nvml = FakeNvml(instant=0)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    watch = ClockWatch("cuda", interval=0.001)
    with watch:
        while nvml.looks < 10:
            pass
    assert watch.summary is not None and set(watch.summary) == {"sm_mhz", "memory_mhz", "celsius", "watts"}
    seen = watch.summary["sm_mhz"]
    assert seen["min"] < seen["median"] < seen["max"] == 1979
    assert watch.summary["watts"] == {"min": 280.0, "median": 280.0, "max": 280.0}
    with ClockWatch("cpu") as none:
        pass
    assert none.summary is None


def make_profile(tables: dict[str, pl.DataFrame]) -> Profile:
    from calibrate.profile import Provenance

    provenance = Provenance("measured", "by hand", "none")
    return Profile("p", "a device", load_model("tiny-llama"), 1, "float32", provenance, tables)


def test_recorded_requests_in_buckets_are_powers_of_two(campaign: ModuleType) -> None:
    from campaign.serve_recorded import trace_of

    plain, bucketed = trace_of("cpu", bucketed=False).requests, trace_of("cpu", bucketed=True).requests
    for column in ("prompt_tokens", "output_tokens"):
        for exact, rounded in zip(plain[column], bucketed[column], strict=True):
            assert rounded & (rounded - 1) == 0 and exact <= rounded < 2 * exact


def test_traces_are_drawn_once_for_all(campaign: ModuleType, tmp_path: Path) -> None:
    from campaign.replay import write_trace

    counts = [write_trace(tmp_path / f"{name}.parquet", "cpu", rate=90.0, capacity=45.0) for name in "ab"]
    first, second = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in "ab")
    assert first.equals(second) and counts == [len(first)] * 2


def test_the_gpu_grid_fits_its_model_and_graphs() -> None:
    grid, model = short_cuda_grid(), load_model("Llama-3.1-8B")
    assert grid.longest_context <= model.max_context
    assert max(grid.step_sequences) <= max(CUDA_GRAPH_SIZES) == max(grid.graph_sizes)
    assert set(grid.step_sequences) <= set(grid.graph_sizes) <= set(grid.tokens)


def test_steps_of_the_workbench_are_padded(campaign: ModuleType) -> None:
    from dataclasses import replace

    from calibrate.microbench.grid import StepShape

    grid = replace(quick_grid(), graph_sizes=[4])
    bench = Workbench(load_model("tiny-llama"), grid, "cpu", 16, 0)
    launched = [
        bench.decoder.launch(bench.batch(shape)) for shape in (StepShape([], [5, 9, 30]), StepShape([(7, 0)], []))
    ]
    assert [step.padded_to for step in launched] == [4, None]
    assert [capture.size for capture in bench.captures] == [4]
