"""Weights that are loaded again and again."""

from __future__ import annotations

from gallery import Exhibit
from symptom import Row, simulated, symptom

from sim.results.folder import Run

BURSTS = {
    "trace.synth.arrivals": {"process": "on-off", "rate_on": 4.0, "mean_on": 15.0, "mean_off": 285.0},
}

TEXT = """\
Ten models, their popularity falling as 1/rank. There is no figure to match, only mechanisms; each is shown by the
loads of four hours and by how long requests waited for weights.
"""


def run() -> Exhibit:
    base = simulated("model_reloads")
    short = simulated("model_reloads", {"fleet.weight_cache.ttl": 60})
    churn = simulated("model_reloads", {"fleet.weight_cache.update_every": 600})
    tight = simulated("model_reloads", {"fleet.weight_cache.capacity_models": 3})
    stampede = simulated("model_reloads", BURSTS | {"fleet.weight_cache.single_flight": False})
    orderly = simulated("model_reloads", BURSTS)
    warm = {"fleet.weight_cache.preload": [f"model-{rank}" for rank in range(10)]}
    preloaded = simulated("model_reloads", BURSTS | warm)
    return symptom(
        "Model reloads",
        TEXT,
        [
            Row("time to live", "too short; 10–30 min helps", f"1 min: {told(short)}", f"20 min: {told(base)}"),
            Row("version churn", "a reload a version", f"every 10 min: {told(churn)}", f"none: {told(base)}"),
            Row("memory", "LRU under pressure", f"for three: {told(tight)}", f"for all: {told(base)}"),
            Row(
                "bursts",
                "stampede on a miss",
                f"a load a request: {told(stampede)}",
                f"one load for all: {told(orderly)}; all preloaded: {told(preloaded)}",
            ),
        ],
    )


def told(run: Run) -> str:
    weights = run.metrics["weights"]
    return f"{weights['loads']:,} loads, p99 wait {weights['wait']['p99']:.1f} s"
