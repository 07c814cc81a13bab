"""How fast the simulator is: `python benchmarks/speed.py [--json] [--case NAME] [--repeats N] [--peer]`.

Each variant runs in a process of its own, once to warm up and then `--repeats` times; the median is reported. Wall
seconds are those of the simulation and its metrics, on a trace that is in memory: no start-up, no reading, no writing.
The traces come from the folder named by SIMCTL_DATA (default ../shared/data); a case whose trace is not there is
skipped, and says so. The step times are the H100 roofline of the datasheet: what matters here is their number. The
token budget is 8192 a step, vLLM's default for an API server on such a GPU.

`--peer` also runs NVIDIA's replay (`python -m dynamo.replay` of `ai-dynamo` 1.2.1, where the interpreter named by
`--peer-python` has it) on the same trace with as many workers and its own defaults, in alternation with ours. Its wall
time is the one that it reports.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

DATA = Path(os.environ.get("SIMCTL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MOONCAKE = DATA / "traces/mooncake-fast25/conversation_trace.jsonl.gz"
AZURE = DATA / "traces/azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz"
BASE = {
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"max_num_batched_tokens": 8192},
}
SWEEP_POINTS, SWEEP_REQUESTS = 64, 20_000
_ROUTERS_OF_PEER = {"round_robin": "round_robin", "prefix_aware": "kv_router"}


def _synthetic(requests: int, replicas: int) -> dict[str, Any]:
    """Requests of a conversation's lengths, at about two thirds of what the replicas sustain."""
    lengths = {
        "prompt": {"distribution": "lognormal", "median": 700, "sigma": 0.8, "low": 16, "high": 8000},
        "output": {"distribution": "lognormal", "median": 160, "sigma": 0.7, "low": 2, "high": 1000},
    }
    synth = {"requests": requests, "arrivals": {"process": "poisson", "rate": 10.0 * replicas}, "lengths": lengths}
    return {"trace": {"synth": synth}, "fleet": {"replicas": replicas, "router": "round_robin"}}


def _shared(requests: int, replicas: int) -> dict[str, Any]:
    """The same behind system prompts that many of them share, before a router that knows prefixes."""
    scenario = _synthetic(requests, replicas)
    tokens = {"distribution": "constant", "value": 512}
    scenario["trace"]["synth"] |= {"prefixes": {"groups": 1000, "tokens": tokens, "zipf": 1.0}, "block_tokens": 256}
    scenario["fleet"]["router"] = "prefix_aware"
    return scenario


def _traced(path: Path, replicas: int, router: str) -> dict[str, Any]:
    return {"trace": {"file": str(path)}, "fleet": {"replicas": replicas, "router": router}}


# Case → variant → scenario beyond `BASE`.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "mooncake8": {router: _traced(MOONCAKE, 8, router) for router in ("round_robin", "prefix_aware")},
    "azure4": {"least_outstanding": _traced(AZURE, 4, "least_outstanding")},
    "million": {"round_robin": _synthetic(1_000_000, 64)},
    "fleet": {"prefix_aware": _shared(1_000_000, 256)},
    "scale": {
        "10k requests": _synthetic(10_000, 64),
        "100k requests": _synthetic(100_000, 64),
        "1M requests": _synthetic(1_000_000, 64),
        "1 replica": _synthetic(100_000, 1),
        "16 replicas": _synthetic(100_000, 16),
        "256 replicas": _synthetic(100_000, 256),
    },
}


def run_once(case: str, variant: str) -> tuple[float, Any, dict[str, Any]]:
    """Wall seconds of one simulation, what it left, and its metrics."""
    from sim.results import metrics
    from sim.study.deployment import deploy
    from sim.study.scenario import make_scenario
    from sim.study.simulate import load_trace, run_fleet

    scenario = make_scenario(BASE | CASES[case][variant], {}, Path(), case)
    trace = load_trace(scenario)  # kept from one call to the next
    start = time.perf_counter()
    run = run_fleet(scenario, trace, deploy(scenario))
    numbers = metrics.compute(
        run.requests, run.steps, slo=scenario.slo, gpus=scenario.gpus, gpu_hour_price=None, kv_blocks_total=None
    )
    return time.perf_counter() - start, run, numbers


def measure(case: str, variant: str, repeats: int, peer_python: str | None) -> dict[str, Any]:
    """Run one variant in this process."""
    run_once(case, variant)
    walls, theirs = [], []
    for _ in range(repeats):
        run: Any = None  # the last one's tables are not part of the next one's peak
        wall, run, numbers = run_once(case, variant)
        walls.append(wall)
        if peer_python and case == "mooncake8":
            theirs.append(run_peer(peer_python, _ROUTERS_OF_PEER[variant]))
    wall = statistics.median(walls)
    peer = statistics.median(theirs) if theirs else None
    requests = len(run.requests)
    return _row(
        case, variant, requests, wall, numbers["duration"], run.event_count, int(run.steps["steps"].sum()),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, peer,
    )  # fmt: skip


def _row(
    case: str,
    variant: str,
    requests: int,
    wall: float,
    duration: float | None,
    events: int | None,
    steps: int | None,
    peak_mb: float,
    peer: float | None,
) -> dict[str, Any]:
    return {
        "case": case,
        "variant": variant,
        "requests": requests,
        "wall_s": round(wall, 4),
        "requests_per_s": round(requests / wall),
        "realtime_factor": round(duration / wall) if duration else None,
        "events": events,
        "steps": steps,
        "peak_mb": round(peak_mb),
        "peer_wall_s": round(peer, 3) if peer else None,
        "ratio": round(peer / wall, 2) if peer else None,
    }


def run_peer(python: str, router: str) -> float:
    """Seconds that NVIDIA's replay says it took for the Mooncake conversation trace on eight workers.

    Raises:
        click.ClickException: the interpreter does not have it, or it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace, report = Path(folder) / "trace.jsonl", Path(folder) / "report.json"
        with gzip.open(MOONCAKE, "rb") as packed, trace.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
        command = [python, "-m", "dynamo.replay", "--num-workers", "8", "--router-mode", router]
        command += ["--trace-block-size", "512", "--report-json", str(report), str(trace)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not report.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
            raise click.ClickException(f"{python} -m dynamo.replay failed: {last[0]}")
        return json.loads(report.read_text())["wall_time_ms"] / 1e3


def measure_sweep(workers: int) -> dict[str, Any]:
    """A study of `SWEEP_POINTS` points from start to end, its folder written."""
    from sim.study.study import Study
    from sim.study.sweep import sweep
    from sim.study.workers import LocalWorkers

    base = BASE | _synthetic(SWEEP_REQUESTS, 4)
    study = Study(
        scenario=base | {"slo": {"ttft": 2.0, "tpot": 0.1}},
        parameters={
            "engine.max_num_seqs": [16, 32, 64, 96, 128, 160, 192, 256],
            "engine.max_num_batched_tokens": [512, 1024, 2048, 3072, 4096, 6144, 8192, 16384],
        },
        objective="ttft.p99",
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with LocalWorkers(workers) as processes:
            sweep(study, Path(folder) / "sweep", workers=processes)
        wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN if workers > 1 else resource.RUSAGE_SELF)
    variant = f"{workers} worker{'s' if workers > 1 else ''}"
    return _row("sweep", variant, SWEEP_POINTS * SWEEP_REQUESTS, wall, None, None, None, used.ru_maxrss / 1024, None)


def results(only: str | None, repeats: int, peer_python: str | None) -> Iterator[dict[str, Any]]:
    for case, variants in CASES.items():
        if only not in (None, case):
            continue
        for variant, scenario in variants.items():
            source = scenario["trace"].get("file")
            if source is not None and not Path(source).is_file():
                click.echo(f"{case}: skipped, {source} is not there (set SIMCTL_DATA)", err=True)
                continue
            yield _apart(measure, case, variant, repeats, peer_python)
    if only in (None, "sweep"):
        for workers in sorted({1, os.cpu_count() or 1}):
            yield _apart(measure_sweep, workers)


def _apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call it in a process of its own, whose memory is nobody else's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--case", "only", type=click.Choice([*CASES, "sweep"]), help="Run one case.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--peer", is_flag=True, help="Also run NVIDIA's replay on the Mooncake trace.")
@click.option("--peer-python", default=sys.executable, help="The interpreter that has ai-dynamo 1.2.1.")
def main(as_json: bool, only: str | None, repeats: int, peer: bool, peer_python: str) -> None:
    """Measure the simulator's speed."""
    rows = []
    for row in results(only, repeats, peer_python if peer else None):
        rows.append(row)
        if not as_json:
            shown = {key: value for key, value in row.items() if value is not None}
            click.echo("  ".join(v if k in ("case", "variant") else f"{k} {v:,}" for k, v in shown.items()))
    if as_json:
        click.echo(json.dumps({"cases": rows}, indent=2))


if __name__ == "__main__":
    main()
