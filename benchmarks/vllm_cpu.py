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
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table
from vllm_server import ENVIRONMENT, HOW_TO_INSTALL, OPTIONS, Cores, Vllm, serve, versions

from ground.errors import UserError
from sim.results.display import metric_text, seconds, share
from sim.results.metric_names import METRICS, metric
from sim.results.metrics import compute
from sim.results.slo import Slo
from traces.synth import SynthSpec, generate
from validate.replay import openai

MODEL = Path(__file__).resolve().parents[1] / "calibrate/models/tiny-llama.json"
LENGTHS = {
    "prompt": {"distribution": "lognormal", "median": 128, "sigma": 0.7, "low": 16, "high": 1024},
    "output": {"distribution": "lognormal", "median": 48, "sigma": 0.6, "low": 4, "high": 256},
}
SHOWN = [
    *("requests.finished", "requests.failed"),
    *(f"{latency}.{statistic}" for latency in ("ttft", "tpot", "e2e") for statistic in ("mean", "p50", "p99")),
    "throughput.output_tokens",
]


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
    found = versions(python)
    cores = Cores.available()
    model = json.loads(MODEL.read_text(encoding="utf-8"))
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
        "versions": found | {"client's python": platform.python_version()},
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
