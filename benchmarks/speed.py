"""How fast the simulator is: `python benchmarks/speed.py [--json] [--case NAME] [--repeats N]`.

Each variant runs in a process of its own, once to warm up and then `--repeats` times; the median is reported. Wall
seconds are those of the simulation and its metrics, on a trace that is in memory: no start-up, no reading, no writing.
The traces come from the folder named by SIMCTL_DATA (default ../shared/data); a case whose trace is not there is
skipped, and says so. The step times are the H100 roofline of the datasheet: what matters here is their number.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

DATA = Path(os.environ.get("SIMCTL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MOONCAKE = DATA / "traces/mooncake-fast25/conversation_trace.jsonl.gz"
AZURE = DATA / "traces/azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz"
MODEL = {"model": "Llama-3.1-8B", "profile": "datasheet:h100-sxm-80gb"}


def _million() -> dict[str, Any]:
    """A million requests of a conversation's lengths, about two thirds of what 64 replicas sustain."""
    lengths = {
        "prompt": {"distribution": "lognormal", "median": 700, "sigma": 0.8, "low": 16, "high": 8000},
        "output": {"distribution": "lognormal", "median": 160, "sigma": 0.7, "low": 2, "high": 1000},
    }
    synth = {"requests": 1_000_000, "arrivals": {"process": "poisson", "rate": 640.0}, "lengths": lengths}
    return {"trace": {"synth": synth}, "fleet": {"replicas": 64, "router": "round_robin"}}


# Case → variant → scenario without model and profile.
CASES: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "mooncake8": {
        router: lambda router=router: {  # type: ignore[misc]
            "trace": {"file": str(MOONCAKE)},
            "fleet": {"replicas": 8, "router": router},
        }
        for router in ("round_robin", "prefix_aware")
    },
    "azure4": {
        "least_outstanding": lambda: {
            "trace": {"file": str(AZURE)},
            "fleet": {"replicas": 4, "router": "least_outstanding"},
        }
    },
    "million": {"round_robin": _million},
}


def measure(case: str, variant: str, repeats: int) -> dict[str, Any]:
    """Run one variant in this process."""
    from sim.results import metrics
    from sim.study.scenario import make_scenario
    from sim.study.simulate import deploy, load_trace, run_fleet

    scenario = make_scenario(MODEL | CASES[case][variant](), {}, Path(), case)
    trace = load_trace(scenario)
    walls = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        deployment = deploy(scenario)
        run = run_fleet(scenario, trace, deployment)
        numbers = metrics.compute(
            run.requests, run.steps, slo=scenario.slo, gpus=scenario.gpus, gpu_hour_price=None, kv_blocks_total=None
        )
        if repeat:
            walls.append(time.perf_counter() - start)
    wall = statistics.median(walls)
    return {
        "case": case,
        "variant": variant,
        "requests": len(trace.requests),
        "wall_s": round(wall, 4),
        "requests_per_s": round(len(trace.requests) / wall),
        "realtime_factor": round(numbers["duration"] / wall),
        "events": run.events,
        "steps": int(run.steps["steps"].sum()),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--case", "only", type=click.Choice(list(CASES)), help="Run one case.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1))
def main(as_json: bool, only: str | None, repeats: int) -> None:
    """Measure the simulator's speed."""
    results = []
    for case, variants in CASES.items():
        if only not in (None, case):
            continue
        for variant, make in variants.items():
            source = make()["trace"].get("file")
            if source is not None and not Path(source).is_file():
                click.echo(f"{case}: skipped, {source} is not there (set SIMCTL_DATA)", err=True)
                continue
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                result = pool.submit(measure, case, variant, repeats).result()
            results.append(result)
            if not as_json:
                click.echo("  ".join(f"{key} {value:,}" if key != "case" and key != "variant" else str(value)
                                     for key, value in result.items()))  # fmt: skip
    if as_json:
        click.echo(json.dumps({"cases": results}, indent=2))


if __name__ == "__main__":
    main()
