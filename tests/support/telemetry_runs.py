"""Runs whose telemetry is written: simulated ones under pressure, and tables that nobody simulated."""

from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from sim.results.folder import Run
from sim.results.metrics import compute
from sim.results.slo import Slo
from sim.results.tables import STEPS
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate

SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 150,
            "arrivals": {"process": "poisson", "rate": 80.0},
            "lengths": {
                "prompt": {"distribution": "lognormal", "median": 300, "sigma": 0.6, "low": 16, "high": 1500},
                "output": {"distribution": "lognormal", "median": 60, "sigma": 0.7, "low": 1, "high": 250},
            },
            "prefixes": {"groups": 3, "tokens": {"distribution": "constant", "value": 96}, "zipf": 1.0},
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "engine": {"kv_blocks": 250},  # too few: requests are preempted
    "fleet": {"replicas": 2},
    "gpu_hour_price": 3.0,
    "seed": 3,
}


@cache
def simulated(preset: str = "vllm-0.11") -> Run:
    return simulate(make_scenario(SCENARIO, {"engine.preset": preset}, Path(), "scenario"))


def run_of(requests: pl.DataFrame, steps: pl.DataFrame | None = None, **more: Any) -> Run:
    """A run with these tables, of one pool of 300 blocks."""
    steps = pl.DataFrame(schema=STEPS) if steps is None else steps
    metrics = compute(requests, steps, slo=Slo(), gpus=1, gpu_hour_price=None, kv_blocks_total=300)
    scenario = {"model": "tiny-llama", "engine": {"preset": "vllm-0.11"}, "fleet": {"router": "round_robin"}}
    return Run(requests, steps, metrics, scenario, [], **more)
