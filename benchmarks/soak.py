"""A day of sessions that come and go: what is left of them in the engines, and in the simulator.

    python benchmarks/soak.py
    python benchmarks/soak.py --hours 2 --rate 1

At the end every KV block must be free again, and every session forgotten. Hour by hour it prints what the process
holds: its resident memory, and that without the rows recorded so far, which are the run's result: the rest must not
grow.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import click
import psutil
import simpy

from sim.fleet.equal_replicas import equal_replicas
from sim.study.deployment import deploy
from sim.study.scenario import make_scenario
from sim.study.simulate import load_trace
from sim.study.step_sources import StepSources

HOUR = 3600.0


def scenario(hours: float, rate: float, replicas: int) -> dict[str, Any]:
    """`rate` sessions a second, of six turns on average."""
    return {
        "trace": {
            "synth": {
                "duration": hours * HOUR,
                "arrivals": {"process": "diurnal", "rate": rate, "peak_to_trough": 3.0, "period": hours * HOUR},
                "lengths": {
                    "prompt": {"distribution": "lognormal", "median": 100, "sigma": 0.8, "low": 8, "high": 2000},
                    "output": {"distribution": "lognormal", "median": 60, "sigma": 0.6, "low": 4, "high": 500},
                },
                "prefixes": {"groups": 20, "tokens": {"distribution": "uniform", "low": 128, "high": 512}, "zipf": 1.0},
                "sessions": {
                    "turns": {"distribution": "geometric", "mean": 6},
                    "think_time": {"distribution": "exponential", "mean": 30},
                    "context_limit": 8000,
                },
                "block_tokens": 64,
            }
        },
        "model": "Llama-3.1-8B",
        "profile": "datasheet:h100-sxm-80gb",
        "engine": {
            "preset": "vllm-0.19",
            "block_size": 64,
            "session_retention": {"policy": "lru", "ttl": 600.0},
            "host_work": {"per_session": 1e-6, "forget_after": 600.0},
            "memory": {"allocator": "caching", "leak_per_minute": 100_000, "sample_every": 60.0},
        },
        "fleet": {"replicas": replicas, "router": "prefix_aware"},
    }


def soak(hours: float, rate: float, replicas: int) -> bool:
    """Simulate and print; whether nothing was left behind."""
    data = make_scenario(scenario(hours, rate, replicas), {}, Path(), "soak")
    trace = load_trace(data)
    print(f"{len(trace.requests):,} requests of {trace.requests['session'].n_unique():,} sessions in {hours:g} h")
    deployed = deploy(data)
    sources = StepSources(data.engine, deployed.config, deployed.step_times, deployed.memory, deployed.shapes)
    fleet = equal_replicas(
        trace.requests,
        deployed.config,
        deployed.step_times,
        replicas=replicas,
        router=data.fleet.router,
        seed=data.seed,
        costs=sources.make,
    )
    process = psutil.Process()
    print(" hour  seconds  resident MB  recorded MB  the rest MB  objects")
    begin = time.perf_counter()
    rest: list[float] = []

    def watch() -> Generator[simpy.Event, None, None]:
        clock = fleet.world.clock
        for hour in range(int(hours) + 1):
            if hour:
                yield clock.timeout(HOUR)
            gc.collect()
            resident = process.memory_info().rss / 1e6
            recorded = (len(fleet.world.steps._rows) + len(fleet.world.events._rows)) / 1e6
            rest.append(resident - recorded)
            seconds, objects = time.perf_counter() - begin, len(gc.get_objects())
            memory = f"{resident:12.0f} {recorded:12.1f} {rest[-1]:12.0f}"
            print(f"{hour:5d} {seconds:8.1f} {memory} {objects:8,d}", flush=True)

    fleet.world.clock.process(watch())
    run = fleet.run()
    finished = int((run.requests["status"] == "finished").sum())
    print(f"{finished:,} of {len(run.requests):,} finished in {time.perf_counter() - begin:.0f} s")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")
    left = 0
    for engine in (one.engine for one in fleet.service.members):
        scheduler = engine.scheduler
        left += scheduler.pool.total - scheduler.pool.free + scheduler.running_count + scheduler.waiting_count
    quarter = len(rest) // 4
    growth = rest[-1] - rest[quarter] if quarter else 0.0
    print(f"blocks, seats and places in queues left behind: {left}")
    print(f"the rest grew by {growth:.0f} MB after the first quarter")
    return left == 0 and finished == len(run.requests)


@click.command()
@click.option("--hours", default=24.0, show_default=True)
@click.option("--rate", default=2.0, show_default=True, help="Sessions a second, on average.")
@click.option("--replicas", default=4, show_default=True)
def main(hours: float, rate: float, replicas: int) -> None:
    """Simulate a day; exit 1 if anything is left behind."""
    raise SystemExit(0 if soak(hours, rate, replicas) else 1)


if __name__ == "__main__":
    main()
