"""A Ray cluster of two machines, which the test starts on this one: the same bytes as here, also when one is lost."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import TABLE, refused, simctl, write_scenario

from ground.errors import UserError
from sim.study.ray_workers import RayWorkers

PATIENCE = 300.0  # seconds that something certain to happen may take on a busy machine
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that computes nothing, and one machine of a CPU beside it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0})
    made.add_node(**SMALL)
    yield made
    made.shutdown()


def write_study(folder: Path, files: list[str]) -> None:
    write_scenario(folder)
    study = {"scenario": "s.yaml", "parameters": {"trace.file": files, "engine.max_num_seqs": [1, 2]}, "winners": 1}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


def opened_by_a_reader(pipe: Path, process: subprocess.Popen[str]) -> int:
    """The writing end of a pipe, once somebody reads it."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):  # nobody has opened it yet
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    raise AssertionError(f"nobody read {pipe}; the command ended with {process.poll()}")


@pytest.mark.slow
def test_a_sweep_on_ray_is_the_sweep_here_also_when_a_machine_is_lost(cluster: Any, tmp_path: Path) -> None:
    """A trace that is a pipe holds one machine's point up until that machine is lost; then another simulates it."""
    write_study(tmp_path, ["a.csv", "b.csv"])
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(TABLE)
    study, whole, lost = str(tmp_path / "study.yaml"), tmp_path / "whole", tmp_path / "lost"
    simctl("sweep", study, "-o", str(whole), "--workers", "1")
    (tmp_path / "b.csv").unlink()
    os.mkfifo(tmp_path / "b.csv")
    on_ray = ["sweep", study, "-o", str(lost), "--engine", "ray", "--address", cluster.address]
    sweep = subprocess.Popen([sys.executable, "-m", "simctl", *on_ray], stderr=subprocess.PIPE, text=True)
    pipe = opened_by_a_reader(tmp_path / "b.csv", sweep)
    # While the pipe stays open its reader waits for what is never written: only the machine's end can end it.
    first = cluster.worker_nodes.copy()
    cluster.add_node(**SMALL)
    for machine in first:
        cluster.remove_node(machine, allow_graceful=False)
    (tmp_path / "b.csv").unlink()
    (tmp_path / "b.csv").write_text(TABLE)
    _, said = sweep.communicate(timeout=PATIENCE)
    os.close(pipe)
    assert sweep.returncode == 0, said
    for name in ("points.parquet", "winners.json", "winners/winner-1/requests.parquet", "study.yaml"):
        assert (lost / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_search_on_ray_is_the_search_here(cluster: Any, tmp_path: Path) -> None:
    write_scenario(tmp_path)
    study = {"scenario": "s.yaml", "parameters": {"engine.max_num_seqs": [1, 2]}, "objectives": ["ttft.p99"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "points": 2, "winners": 1, "seeds": 1}))
    for folder, more in (("here", ["--workers", "1"]), ("ray", ["--engine", "ray", "--address", cluster.address])):
        simctl("search", str(tmp_path / "study.yaml"), "-o", str(tmp_path / folder), *more)
    for name in ("points.parquet", "search.json", "winners.json"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_no_cluster_is_one_line(tmp_path: Path) -> None:
    write_study(tmp_path, ["trace.csv"])
    study, out = str(tmp_path / "study.yaml"), str(tmp_path / "out")
    assert "--address is given and --engine is local" in refused("sweep", study, "-o", out, "--address", "x:1")
    said = refused("sweep", study, "-o", out, "--engine", "ray", "--workers", "2")
    assert "--workers is given and --engine is ray" in said
    pytest.importorskip("ray")
    on_ray = ("sweep", study, "-o", out, "--engine", "ray", "--address")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert f"--engine ray: no cluster at {address} (" in refused(*on_ray, address)
    assert "no cluster at here (expected HOST:PORT)" in refused(*on_ray, "here")


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--engine ray needs Ray .*; pip install 'simctl\[ray\]'"):
        RayWorkers()
