"""`benchmarks/openvino_genai.py` without OpenVINO: its driver on a pipeline of the same protocol, and the whole of it
on an engine whose every step is known, which it must predict."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from benchmark_modules import load
from click.testing import CliRunner

from calibrate.model import load_model

# The driver in the other interpreter.


class Handle:
    def __init__(self, request_id, prompt, tokens):
        self.request_id, self.prompt, self.left, self.unread = request_id, prompt, tokens, 0
        self.state = "running"

    def can_read(self):
        return self.unread > 0

    def read(self):
        self.unread -= 1
        return {0: SimpleNamespace(generated_ids=[5])}

    def get_status(self):
        return self.state

    def stop(self):
        self.state = "stopped"


class Pipeline:
    """A token a step for everybody; two prompts fit a step. The clock is its own."""

    now = 100.0

    def __init__(self, *_):
        self.requests = []
        self.computed = set()
        self.per_step = []

    def add_request(self, request_id, tensor, config):
        assert config.ignore_eos and not config.do_sample
        handle = Handle(request_id, tensor.shape[1], config.max_new_tokens)
        self.requests.append(handle)
        return handle

    def has_non_finished_requests(self):
        return any(handle.state == "running" for handle in self.requests)

    def step(self):
        Pipeline.now += 0.01
        running = [handle for handle in self.requests if handle.state == "running"]
        fresh = [handle for handle in running if handle not in self.computed][:2]
        self.computed.update(fresh)
        served = [handle for handle in running if handle in self.computed]
        self.per_step.append([handle.request_id for handle in served])
        for handle in served:
            handle.unread += 1
            handle.left -= 1
            if handle.left == 0:
                handle.state = "finished"


@pytest.fixture(params=["wall", "process"])
def driver(request, monkeypatch):
    """The driver's engine over the pipeline above."""

    def sleep(duration):
        Pipeline.now += duration

    def clock():
        Pipeline.now += 1e-6  # time passes while one looks at it
        return Pipeline.now

    class Configuration:
        def __init__(self):
            self.max_new_tokens = 0

    genai = ModuleType("openvino_genai")
    genai.SchedulerConfig = genai.GenerationConfig = Configuration
    genai.ContinuousBatchingPipeline = Pipeline
    genai.GenerationStatus = SimpleNamespace(RUNNING="running")
    openvino = ModuleType("openvino")
    openvino.Tensor = np.asarray
    monkeypatch.setitem(sys.modules, "openvino_genai", genai)
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    module = load("openvino_engine")
    # While it waits a process has no CPU time; here it never waits, as its clock does not.
    time = SimpleNamespace(perf_counter=clock, process_time=clock, sleep=sleep if request.param == "wall" else None)
    monkeypatch.setattr(module, "time", time)
    start = {"gguf": "m.gguf", "threads": 1, "core": None, "vocabulary": 97, "clock": request.param}
    return module.Engine(start | {"kv_blocks": 8, "max_num_batched_tokens": 64, "max_num_seqs": 8})


def test_the_driver_times_prompts_alone(driver):
    for _ in range(3):
        assert driver.prefill(tokens=20)["seconds"] == pytest.approx(0.01, abs=1e-4)
    assert [handle.prompt for handle in driver._pipeline.requests] == [20] * 3
    assert driver._pipeline.per_step == [[1], [2], [3]]


def test_the_driver_counts_what_a_decode_batch_reads(driver):
    """Five prompts take three steps to come in; by then the first two have three tokens, the next two have two."""
    answer = driver.decode(batch=5, context=30, steps=4)
    first = 2 * (30 + 2) + 2 * (30 + 1) + 30
    assert answer["cached"] == [first + 5 * step for step in range(4)]
    assert answer["seconds"] == pytest.approx([0.01] * 4, abs=1e-4)
    assert not driver._pipeline.has_non_finished_requests()
    assert driver.prefill(tokens=8)["seconds"] == pytest.approx(0.01, abs=1e-4)  # nothing is left over


def test_the_driver_replays_in_time(driver):
    requests = [
        {"due": due, "prompt": [1] * 8, "output_tokens": tokens}
        for due, tokens in ((0.005, 3), (0.006, 1), (0.006, 2), (0.5, 2))
    ]
    answer = driver.replay(requests)
    (a_first, a_finish, a_tokens), (b_first, b_finish, b_tokens), *later = answer["requests"]
    (c_first, _, c_tokens), (d_first, d_finish, _) = later
    assert (a_tokens, b_tokens, c_tokens) == (3, 1, 2)
    # The first starts on its own; who was due during its step comes in at its end.
    assert a_first == pytest.approx(0.015, abs=1e-3)
    assert a_finish == pytest.approx(0.035, abs=1e-3)
    assert b_first == b_finish == c_first == pytest.approx(0.025, abs=1e-3)
    assert (d_first, d_finish) == (pytest.approx(0.51, abs=1e-3), pytest.approx(0.52, abs=1e-3))
    assert len(answer["late"]) == 2  # twice the engine was idle
    assert all(0 <= late < 1e-3 for late in answer["late"])
    assert answer["steps"] == 5
    assert answer["busy"] == pytest.approx(0.05, abs=1e-3)


# The whole of it, on an engine whose steps follow a law.

FAKE = """
import json, sys
A, B, C, D = 2e-3, 1e-4, 2e-8, 4e-7

def law(prefills, contexts):
    tokens = sum(prefills) + len(contexts)
    return A + B * tokens + C * sum(n * n for n in prefills) + D * sum(contexts)

def replay(requests):
    now, coming, prompts, inside, answers, steps, busy = 0.0, list(enumerate(requests)), [], {}, {}, 0, 0.0
    while coming or prompts or inside:
        if not prompts and not inside:
            now = coming[0][1]["due"]
        while coming and coming[0][1]["due"] <= now:
            prompts.append(coming.pop(0))
        taken, room = [], 2048 - len(inside)
        while prompts and len(prompts[0][1]["prompt"]) <= room:
            room -= len(prompts[0][1]["prompt"])
            taken.append(prompts.pop(0))
        assert not prompts  # the law above knows no chunks
        took = law([len(r["prompt"]) for _, r in taken], [len(r["prompt"]) + n - 1 for r, n, _ in inside.values()])
        now, steps, busy = now + took, steps + 1, busy + took
        inside = {i: (r, n + 1, first) for i, (r, n, first) in inside.items()}
        inside.update({i: (r, 1, now) for i, r in taken})
        for i, (r, n, first) in list(inside.items()):
            if n == r["output_tokens"]:
                answers[i] = [first, now, n]
                del inside[i]
    return {"requests": [answers[i] for i in range(len(requests))], "late": [0.0], "steps": steps, "busy": busy,
            "cpu": busy}

def measure(measure, **asked):
    if measure == "prefill":
        return {"seconds": law([asked["tokens"]], [])}
    if measure == "decode":
        b, c, steps = asked["batch"], asked["context"], range(asked["steps"])
        return {"seconds": [law([], [c + i] * b) for i in steps], "cached": [b * (c + i) for i in steps]}
    return replay(**asked)

start = json.loads(sys.stdin.readline())
assert open(start["gguf"], "rb").read(4) == b"GGUF"
print(json.dumps({"openvino-genai": "fake"}), flush=True)
for line in sys.stdin:
    print(json.dumps(measure(**json.loads(line))), flush=True)
"""


def interpreter(folder: Path, script: str) -> Path:
    """An executable that runs the script, whatever it is told to run."""
    (folder / "fake.py").write_text(script)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "fake.py"}"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def benchmark(monkeypatch):
    module = load("openvino_genai")
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {0})  # or this process would be moved
    return module


def test_a_known_engine_is_predicted(benchmark, tmp_path):
    arguments = ["--python", interpreter(tmp_path, FAKE), "--repeats", 2, "--requests", 60, "--rate", 8]
    result = CliRunner().invoke(benchmark.main, [*map(str, arguments), "--json"])
    assert result.exception is None, result.output
    answer = json.loads(result.stdout)
    for name, row in answer["summary"].items():
        if row["error"] is not None:
            # A batch has a whole number of cached tokens, and a mean context between them.
            assert abs(row["error"]) < 1e-3, (name, row)
            assert row["spread"] == 0
    assert answer["summary"]["requests.finished"]["predicted"] == 60
    assert all(abs(step["error"]) < 1e-3 for step in answer["held_out"])
    assert len(answer["repeats"]) == 2 and answer["repeats"][0]["steps"] > 60
    assert answer["versions"]["openvino-genai"] == "fake"


def test_the_table_names_every_metric(benchmark, tmp_path):
    arguments = ["--python", interpreter(tmp_path, FAKE), "--repeats", 1, "--requests", 8]
    result = CliRunner().invoke(benchmark.main, [*map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exception is None, result.output
    for text in ("TTFT mean", "TPOT p99", "Output throughput", "spread of repeats", "prefill of 96"):
        assert text in result.output


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('ModuleNotFoundError: no openvino_genai')", "no openvino_genai"),
        ("", "it said nothing"),
    ],
)
def test_an_interpreter_without_the_library_is_named(benchmark, tmp_path, script, said):
    python = interpreter(tmp_path, script)
    result = CliRunner().invoke(benchmark.main, ["--python", str(python)])
    assert result.exit_code == 2
    assert said in result.output and "pip install openvino-genai" in result.output


def test_no_interpreter_at_all(benchmark, tmp_path, monkeypatch):
    monkeypatch.delenv("SIMCTL_OPENVINO_PYTHON", raising=False)
    assert "SIMCTL_OPENVINO_PYTHON is not set" in CliRunner().invoke(benchmark.main, []).output
    result = CliRunner().invoke(benchmark.main, ["--python", str(tmp_path / "none")])
    assert result.exit_code == 2 and "cannot be started" in result.output


def test_the_grid_covers_the_trace(benchmark):
    model = load_model(benchmark.MODEL)
    longest = benchmark.LENGTHS["prompt"]["high"]
    assert max(benchmark.PREFILLS) >= longest and model.max_context >= max(benchmark.PREFILLS)
    assert all(low < high for low, high in pairwise(benchmark.PREFILLS))
    capacity = benchmark.LIMITS["kv_blocks"] * benchmark.BLOCK_SIZE
    steps = benchmark.SETTLING + benchmark.DECODE_STEPS
    assert max(batch * (context + steps + batch) for batch, context in benchmark.DECODES) <= capacity
