"""A day, and who follows it: fixed fleets, Kubernetes' HPA, KEDA, an SLA planner, and forecasts."""

from __future__ import annotations

from typing import Any

from gallery import Exhibit, points, rows_of_lines
from plotly.graph_objects import Figure
from scenarios import gpu_hours, seconds, share, simulated

from sim.results.folder import Run

DAY = 86400.0
BOUNDS = {"min": 1, "max": 8}
# Six days of the same service before it, from which a forecaster learns.
HISTORY = {
    "synth": {
        "duration": 6 * DAY,
        "arrivals": {"process": "diurnal", "rate": 0.12, "peak_to_trough": 10, "peak_at": 54000},
        "lengths": {name: {"distribution": "constant", "value": 1} for name in ("prompt", "output")},
    }
}
WAITING = {"type": "external", "metric": "vllm:num_requests_waiting", "average_value": 2.0}
SEATS = {"type": "resource", "metric": "seats", "utilization": 50}
PLANNER = {"policy": "planner", "ttft": 10.0, "itl": 0.06}
PREDICTIVE = {"policy": "predictive", "history": HISTORY, "ttft": 10.0, "itl": 0.06, "interval": 300.0, "horizon": 3}
POLICIES: dict[str, dict[str, Any]] = {
    "fixed at 2": {"fleet.replicas": 2},
    "fixed at 5": {"fleet.replicas": 5},
    "HPA, requests waiting": {"policy": "hpa", "metrics": [WAITING]},
    "HPA, seats at 50 %": {"policy": "hpa", "metrics": [SEATS]},
    "KEDA, 4 requests a replica": {"policy": "keda", "min": 1, "triggers": [{"metric": "concurrency", "threshold": 4}]},
    "SLA planner": PLANNER | {"predictor": "constant"},
    "SLA planner, ARIMA": PLANNER | {"predictor": "arima"},
    "SLA planner, Kalman": PLANNER | {"predictor": "kalman"},
    "seasonal-naive forecast": PREDICTIVE | {"forecaster": "seasonal_naive", "season": 288, "rule": "target"},
    "LSTM forecast, > 80 % → +1": PREDICTIVE | {"forecaster": "lstm", "refit": 300},
}

TEXT = """\
The same day of requests before every policy. A replica that is asked for comes minutes later: a node, an image,
weights, the engine's start. Whoever waits until requests queue pays with their first tokens; whoever knows the day
pays with GPU hours.
"""


def run() -> Exhibit:
    runs = {name: simulated("autoscaling", _settings(policy)) for name, policy in POLICIES.items()}
    header = ["policy", "SLO attainment", "TTFT p99", "GPU hours", "cost per 1M output tokens", "scalings"]
    return Exhibit(
        "Autoscaling over a day",
        TEXT,
        header,
        [
            (
                name,
                share(run.metrics["slo"]["attainment"]),
                seconds(run.metrics["ttft"]["p99"]),
                gpu_hours(run),
                f"{run.metrics['cost']['per_million_output_tokens']:.2f}",
                str(int((run.events["kind"] == "scaled").sum())),
            )
            for name, run in runs.items()
        ],
        [
            (_attainment(runs), "Every policy: what it costs and what it keeps. Up and to the left is better."),
            (
                rows_of_lines(
                    {name: _ready(run) for name, run in runs.items() if "policy" in POLICIES[name]}, "hour", "replicas"
                ),
                "Replicas that take requests.",
            ),
        ],
    )


def _settings(policy: dict[str, Any]) -> dict[str, Any]:
    return {"fleet.autoscaler": BOUNDS | policy} if "policy" in policy else policy


def _attainment(runs: dict[str, Run]) -> Figure:
    named = {
        name: (run.metrics["gpu_seconds"] / 3600, 100 * run.metrics["slo"]["attainment"]) for name, run in runs.items()
    }
    return points(named, "GPU hours", "requests within the SLO, %")


def _ready(run: Run) -> tuple[list[float], list[float]]:
    """Steps: the hours at which their number changed, and the number before and after."""
    replicas = run.replicas
    assert replicas is not None
    changes = [(time, 1) for time in replicas["ready"].drop_nulls()]
    changes += [(time, -1) for time in replicas.filter(replicas["ready"].is_not_null())["ended"].drop_nulls()]
    hours, counts, count = [0.0], [0.0], 0.0
    for time, change in sorted(changes):
        hours += [time / 3600, time / 3600]
        counts += [count, count + change]
        count += change
    return [*hours, DAY / 3600], [*counts, count]
