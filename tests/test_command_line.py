"""simctl as a user types it: results, mistakes, interrupts and kills."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import yaml
from command_line import SCENARIO, TABLE, refused, simctl, write_scenario

from calibrate.datasheet import datasheet_profile
from calibrate.model import load_model

TABLES = ("requests.parquet", "steps.parquet", "events.parquet", "replicas.parquet")
OUTPUTS = (*TABLES, "metrics.json", "scenario.yaml", "assumptions.json", "report.html")
PATIENCE = 60.0  # seconds that something certain to happen may take on a busy machine


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_scenario(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "simctl", *arguments]


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=PATIENCE)


# Imports.


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in ("run", "sweep", "search", "capacity"))],
)
def test_help_is_quick(arguments: list[str]) -> None:
    python(
        f"import sys; from simctl import main; main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'polars', 'plotly', 'numpy', 'simpy', 'aiohttp'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_help_names_every_command() -> None:
    shown = simctl("--help").stdout
    for name in ("trace", "calibrate", "run", "sweep", "search", "capacity", "diagnose", "validate"):
        assert f"\n  {name} " in shown
        assert "Usage" in simctl(name, "--help").stdout


def test_simulating_needs_no_torch(here: Path) -> None:
    python(
        "import sys; sys.modules['torch'] = None; from simctl import main\n"
        "main(['run', 's.yaml', '-o', 'out'], standalone_mode=False)"
    )
    assert (here / "out" / "metrics.json").is_file()


def test_forecasting_needs_no_simulator(here: Path) -> None:
    rows = TABLE.partition("\n")[2]
    (here / "trace.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    python(
        "import sys; sys.modules['simpy'] = None; from simctl import main\n"
        "options = ['--interval', '0.05', '--fits', '1', '--forecaster', 'naive']\n"
        "main(['forecast', 'trace.csv', *options, '-o', 'out'], standalone_mode=False)"
    )
    assert (here / "out" / "forecast.json").is_file()


# run.


def test_run_writes_a_whole_folder(here: Path) -> None:
    shown = simctl("run", "s.yaml", "-o", "out", "--set", "fleet.replicas=2").stdout
    assert sorted(path.name for path in (here / "out").iterdir()) == sorted(OUTPUTS)
    metrics = json.loads((here / "out" / "metrics.json").read_text())
    assert metrics["requests"]["finished"] == metrics["requests"]["total"] == 20
    assert "Finished requests" in shown and "out/report.html" in shown
    resolved = yaml.safe_load((here / "out" / "scenario.yaml").read_text())
    routing = {"load_delay": 0.0, "scrape_interval": 0.0}
    assert resolved["fleet"] == {"replicas": 2, "router": "round_robin", "routing": routing, "sites": {}}
    assert resolved["trace"]["file"] == str(here / "trace.csv")
    assert not list(here.glob(".*"))


def test_run_has_a_default_folder(here: Path) -> None:
    simctl("run", "s.yaml")
    assert (here / "runs" / "s" / "report.html").is_file()


def test_two_runs_are_the_same_bytes(here: Path) -> None:
    synth = {
        "requests": 200,
        "arrivals": {"process": "gamma", "rate": 30, "cv": 2},
        "lengths": {
            "prompt": {"distribution": "lognormal", "median": 200, "sigma": 1, "high": 3000},
            "output": {"distribution": "geometric", "mean": 40},
        },
        "prefixes": {"groups": 3, "tokens": {"distribution": "constant", "value": 128}},
        "sessions": {
            "turns": {"distribution": "geometric", "mean": 2},
            "think_time": {"distribution": "exponential", "mean": 1},
        },
    }
    fleet = {"replicas": 3, "router": "power_of_two"}
    (here / "s.yaml").write_text(yaml.safe_dump(SCENARIO | {"trace": {"synth": synth}, "fleet": fleet, "seed": 5}))
    for name in ("one", "two"):
        environment = os.environ | {"PYTHONHASHSEED": str(len(list(here.iterdir())))}
        subprocess.run(command("run", "s.yaml", "-o", name), check=True, capture_output=True, env=environment)
    # The resolved scenario is the same run again; another seed is another one.
    simctl("run", "one/scenario.yaml", "-o", "again")
    simctl("run", "s.yaml", "-o", "other", "--set", "seed=6")
    for name in ("requests.parquet", "steps.parquet", "metrics.json", "scenario.yaml", "assumptions.json"):
        first = (here / "one" / name).read_bytes()
        assert first == (here / "two" / name).read_bytes() == (here / "again" / name).read_bytes()
        assert name == "assumptions.json" or first != (here / "other" / name).read_bytes()


def test_force_replaces(here: Path) -> None:
    simctl("run", "s.yaml", "-o", "out")
    before = (here / "out" / "requests.parquet").read_bytes()
    assert "exists and is not empty" in refused("run", "s.yaml", "-o", "out", "--set", "trace.first={requests: 3}")
    assert (here / "out" / "requests.parquet").read_bytes() == before
    simctl("run", "s.yaml", "-o", "out", "--force", "--set", "trace.first={requests: 3}")
    assert json.loads((here / "out" / "metrics.json").read_text())["requests"]["total"] == 3


def _trace(content: str) -> Callable[[Path], None]:
    def write(here: Path) -> None:
        (here / "trace.csv").write_text(content)

    return write


def _nothing(here: Path) -> None:
    pass


def _profile_of_another_model(here: Path) -> None:
    datasheet_profile("l40s", load_model("Qwen3-32B"), 1).save(here / "profile")


HEAD = "arrival,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("prepare", "arguments", "said"),
    [
        (_nothing, ["--set", "trace.file=nosuch.csv"], ["nosuch.csv", "cannot be read", "No such file"]),
        (_nothing, ["--set", "trace.format=azurite"], ["trace.csv", "unknown format 'azurite'", "mooncake"]),
        (_trace("when,what\n1,2\n"), ["--set", "trace.columns="], ["trace.csv", "no format matches", "when, what"]),
        (_trace(HEAD + "0,5,1\n1,-5,1\n"), [], ["trace.csv", "data row 1", "'prompt_tokens'", "'-5'"]),
        (_trace(HEAD + "0,5,-1\n"), [], ["trace.csv", "data row 0", "'output_tokens'", "'-1'"]),
        (_trace(HEAD + "0,5,1\nNaN,5,1\n"), [], ["trace.csv", "data row 1", "'arrival'", "'NaN'"]),
        (_trace(HEAD + "0,5,1\ninf,5,1\n"), [], ["trace.csv", "data row 1", "'arrival'", "'inf'"]),
        (_trace(""), [], ["trace.csv", "is empty"]),
        (
            _trace(HEAD + "0,1000,1\n"),
            ["--set", "engine.kv_blocks=60"],
            ["request 0", "1000 prompt", "60 blocks of 16"],
        ),
        (_nothing, ["--set", "engine.max_seqs=3"], ["s.yaml", "unknown key 'engine.max_seqs'"]),
        (_nothing, ["--set", "engine.max_num_seqs"], ["--set", "expected key=value"]),
        (_nothing, ["--set", "model=GPT-9"], ["GPT-9", "no such model", "Llama-3.1-8B"]),
        (_nothing, ["--set", "model=Llama-3.1-70B"], ["leaves no room for KV blocks"]),
        (_nothing, ["--set", "profile=datasheet:abacus"], ["datasheet:abacus", "no such device", "h100-sxm-80gb"]),
        (_profile_of_another_model, ["--set", "profile=profile"], ["Qwen3-32B", "Llama-3.1-8B"]),
        (_nothing, ["-o", "trace.csv"], ["trace.csv", "is a file"]),
        (_nothing, ["-o", "trace.csv/out"], ["trace.csv/out", "cannot be written"]),
        (_nothing, ["-o", "trace.csv/deep/out"], ["trace.csv/deep/out", "cannot be written"]),
    ],
)
def test_bad_input_is_one_line(
    here: Path, prepare: Callable[[Path], None], arguments: list[str], said: list[str]
) -> None:
    prepare(here)
    before = sorted(here.rglob("*"))
    message = refused("run", "s.yaml", *(() if "-o" in arguments else ("-o", "out")), *arguments)
    for part in said:
        assert part in message
    assert sorted(here.rglob("*")) == before, "something half-written is left"


def test_a_scenario_that_is_not_there(here: Path) -> None:
    assert "nosuch.yaml: cannot be read" in refused("run", "nosuch.yaml", "-o", "out")
    assert "nosuch.yaml: cannot be read" in refused("sweep", "nosuch.yaml", "-o", "out")
    (here / "s.yaml").write_text("trace: [")
    assert "s.yaml: not YAML" in refused("run", "s.yaml", "-o", "out")


# sweep.


def write_study(folder: Path, **changes: Any) -> None:
    study = {"scenario": "s.yaml", "parameters": {"engine.max_num_seqs": [1, 2, 16], "fleet.replicas": [1, 2]}}
    study |= {"winners": 1}  # each has a page, which takes longer than to simulate all points
    (folder / "study.yaml").write_text(yaml.safe_dump(study | changes))


def test_sweep_ends_with_the_winners(here: Path) -> None:
    write_study(here)
    result = simctl("sweep", "study.yaml", "-o", "out", "--workers", "1")
    assert "winner-1" in result.stdout and "baseline" in result.stdout and "out/report.html" in result.stdout
    assert "7/7" in result.stderr
    assert (here / "out" / "winners" / "winner-1" / "report.html").is_file()


def test_any_number_of_workers_gives_the_same_bytes(here: Path) -> None:
    write_study(here)
    for workers in ("1", "2"):
        simctl("sweep", "study.yaml", "-o", workers, "--workers", workers)
    for name in ("points.parquet", "winners.json", "winners/winner-1/requests.parquet", "study.yaml"):
        assert (here / "1" / name).read_bytes() == (here / "2" / name).read_bytes()


def test_a_failed_point_is_told(here: Path) -> None:
    write_study(here, parameters={"engine.max_num_seqs": [4, 5000]})
    result = simctl("sweep", "study.yaml", "-o", "out", "--workers", "1")
    assert "1 of 3 points failed; their errors stand in points.parquet" in result.stderr


def test_bad_studies_are_one_line(here: Path) -> None:
    write_study(here, objective="happiness")
    assert "study.yaml: objective: metric 'happiness' is unknown" in refused("sweep", "study.yaml", "-o", "out")
    write_study(here, parameters={"engine.max_seqs": [1]})
    assert "parameters.engine.max_seqs: no such key" in refused("sweep", "study.yaml", "-o", "out")
    write_study(here)
    assert "trace.csv/out: cannot be written" in refused("sweep", "study.yaml", "-o", "trace.csv/out")
    assert "trace.csv: is a file" in refused("sweep", "study.yaml", "-o", "trace.csv")
    (here / "letters").mkdir()
    (here / "letters" / "a.txt").write_text("dear")
    assert "letters: holds something else" in refused("sweep", "study.yaml", "-o", "letters")
    simctl("sweep", "study.yaml", "-o", "done", "--workers", "1")
    write_study(here, winners=2)
    assert "done: holds another study" in refused("sweep", "study.yaml", "-o", "done")
    assert not (here / "out").exists()


# A trace that is a pipe holds its point up for as long as the test likes: no race with the clock.


@pytest.fixture
def stuck(here: Path) -> Path:
    """A study whose third point of four cannot finish before `unstick`."""
    for name in ("a.csv", "c.csv"):
        (here / name).write_text(TABLE)
    os.mkfifo(here / "b.csv")
    write_study(here, parameters={"trace.file": ["a.csv", "b.csv", "c.csv"], "engine.max_num_seqs": [2]})
    return here


def unstick(folder: Path) -> None:
    (folder / "b.csv").unlink()
    (folder / "b.csv").write_text(TABLE)


@contextmanager
def stuck_sweep(folder: Path, workers: int) -> Iterator[tuple[subprocess.Popen[str], IO[bytes]]]:
    """A sweep that reads the pipe, and has finished all that can be finished beside it; and the pipe's other end."""
    sweep = subprocess.Popen(
        command("sweep", "study.yaml", "-o", "out", "--workers", str(workers)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs the tests may ignore it
    )
    pipe: list[IO[bytes]] = []

    def is_read() -> bool:
        with suppress(OSError):  # nobody has opened it yet
            pipe.append(os.fdopen(os.open(folder / "b.csv", os.O_WRONLY | os.O_NONBLOCK), "wb"))
        return bool(pipe)

    try:
        wait_until(is_read)
        wait_until(lambda: finished_points(folder) == (2 if workers == 1 else 3))
        yield sweep, pipe[0]
    finally:
        sweep.kill()
        sweep.communicate()
        for end in pipe:
            end.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished_points(folder: Path) -> int:
    log = folder / "out" / "points.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def check_same_as_uninterrupted(folder: Path) -> None:
    """The same command goes on to what it would have been at once."""
    unstick(folder)
    kept = (folder / "out" / "points.jsonl").read_bytes()
    simctl("sweep", "study.yaml", "-o", "out", "--workers", "1")
    assert (folder / "out" / "points.jsonl").read_bytes().startswith(kept)
    simctl("sweep", "study.yaml", "-o", "whole", "--workers", "1")
    for name in ("points.parquet", "winners.json", "winners/baseline/steps.parquet"):
        assert (folder / "out" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert not [path for path in (folder / "out").rglob("*") if "partial" in path.name]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_sweep_goes_on(stuck: Path, workers: int) -> None:
    with stuck_sweep(stuck, workers) as (sweep, _):
        processes = psutil.Process(sweep.pid).children(recursive=True)
        assert bool(processes) == (workers > 1)
        sweep.kill()
        sweep.communicate(timeout=PATIENCE)
        # Nor do its workers stay behind.
        assert not psutil.wait_procs(processes, timeout=PATIENCE)[1]
    assert not (stuck / "out" / "points.parquet").exists()
    check_same_as_uninterrupted(stuck)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_is_clean_and_the_sweep_goes_on(stuck: Path, workers: int) -> None:
    with stuck_sweep(stuck, workers) as (sweep, pipe):
        os.killpg(sweep.pid, signal.SIGINT)  # as a terminal does: to the command and its workers
        if workers == 1:
            pipe.close()  # reading a pipe, unlike computing, may go on after the signal
        stdout, stderr = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 130
    # The last of the kept points may be in the log and not yet counted.
    kept = finished_points(stuck)
    messages = [f"interrupted: {n} of 4 points are kept; the same command goes on" for n in (kept - 1, kept)]
    assert stderr.splitlines()[-1] in messages
    assert "Traceback" not in stderr and not stdout
    check_same_as_uninterrupted(stuck)


def test_a_killed_worker_is_one_line(stuck: Path) -> None:
    with stuck_sweep(stuck, 2) as (sweep, _):
        children = psutil.Process(sweep.pid).children()
        next(child for child in children if "spawn_main" in " ".join(child.cmdline())).kill()
        _, stderr = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 2
    assert stderr.splitlines()[-1].startswith("simctl: a worker was killed") and "Traceback" not in stderr
    check_same_as_uninterrupted(stuck)


def test_a_line_cut_short_is_tolerated(stuck: Path) -> None:
    unstick(stuck)
    simctl("sweep", "study.yaml", "-o", "out", "--workers", "1")
    log = stuck / "out" / "points.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    (stuck / "out" / "points.parquet").unlink()
    simctl("sweep", "study.yaml", "-o", "out", "--workers", "1")
    assert log.read_bytes() == whole
    assert (stuck / "out" / "points.parquet").is_file()
