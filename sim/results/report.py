"""The page of one run: whether it kept its SLO and what it cost, then the pictures, then the tables behind them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ground.page import Page, Tone
from sim.results import charts, fleet_charts
from sim.results.display import UNKNOWN, digits, joules, metric_text, seconds, share
from sim.results.metric_names import LATENCIES, METRICS, OPTIONAL, STATISTICS, STATUSES, flatten

if TYPE_CHECKING:
    from sim.results.folder import Run

_TILES = (
    "ttft.p99",
    "tpot.p99",
    "e2e.p99",
    "throughput.output_tokens",
    "throughput.requests",
    "goodput.requests",
    "preemptions",
    "kv.peak",
    "prefix_hit_rate",
    "busy.mean",
)
_ENERGY_TILES = ("energy.joules_per_output_token", "energy.watts.mean", "energy.cost")
_FEW_REPLICAS = 8


def write_report(run: Run, path: Path) -> None:
    """Write the run's report as one self-contained HTML file at `path`."""
    numbers, limits = flatten(run.metrics), run.metrics["slo"]["limits"]
    page = Page(run.name, _lead(run))
    others = [_tile(numbers, name) for name in _TILES]
    page.numbers([_slo_tile(run.metrics), *_count_tiles(numbers), *_cost_tiles(numbers), *others])

    page.heading("Latency")
    for latency in ("ttft", "tpot", "e2e"):
        figure = charts.latency_cdf({run.name: run.requests}, latency, limit=limits.get(latency))
        page.figure(figure, f"{LATENCIES[latency]}: share of finished requests at or below x.", height=300)
    figure = charts.latency_over_arrival({run.name: run.requests}, "ttft", limit=limits.get("ttft"))
    page.figure(figure, "TTFT of each request over its arrival; of long runs a sample and the slowest.", height=320)

    page.heading("Over time")
    page.figure(charts.throughput({run.name: run.requests}), "What arrived and what came out.", height=400)
    if (run.requests["status"] != "finished").any():
        figure = fleet_charts.requests_by_status(run.requests)
        page.figure(figure, "How the requests that arrived in each span of time ended.", height=300)
    if run.replicas is not None and fleet_charts.come_and_go(run.replicas):
        figure = fleet_charts.replicas_over_time(run.replicas, run.requests)
        page.figure(figure, "Replicas that are paid for, and that take requests.", height=300)
    if len(run.steps):
        blocks = run.metrics["kv"]["blocks"]
        page.figure(charts.timeline({run.name: run.steps}, kv_blocks=blocks), "The whole fleet.", height=520)
        replicas = charts.by_replica(run.steps)
        if 1 < len(replicas) <= _FEW_REPLICAS:
            page.figure(charts.timeline(replicas, kv_blocks=None), "Each replica.", height=520)

    page.heading("Numbers")
    page.table(
        ["latency", *STATISTICS],
        [[label, *(seconds(numbers[f"{name}.{key}"]) for key in STATISTICS)] for name, label in LATENCIES.items()],
        "Over finished requests; percentiles are linear between order statistics.",
    )
    left_out = LATENCIES.keys() | (OPTIONAL - run.metrics.keys())
    rest = [name for name in METRICS if name.split(".")[0] not in left_out]
    page.table(["metric", "value"], [[METRICS[name].label, metric_text(name, numbers[name])] for name in rest])
    if rows := _pool_rows(run.metrics):
        page.table(["", "cost", "energy"], rows, "Each pool's and site's part.")
    if classes := run.metrics.get("placement", {}).get("classes"):
        page.table(*_class_table(classes))
    if busy := run.metrics["busy"]["replicas"]:
        page.table(["replica", "busy"], [[replica, share(value)] for replica, value in busy.items()])

    page.heading("Assumptions")
    if run.assumptions:
        page.table(
            ["name", "value", "unit", "source", "note"],
            [[a.name, _value(a.value), a.unit, a.source, a.note] for a in run.assumptions],
            "What the run needed beyond the trace, and on whose word.",
        )
    else:
        page.text("None.")

    page.heading("Scenario")
    page.table(["key", "value"], [[key, _value(value)] for key, value in _dotted(run.scenario)])
    page.write(path)


def _lead(run: Run) -> str:
    total, gpus = run.metrics["requests"]["total"], run.metrics["gpus"]
    parts = [f"{total:,} requests", f"{seconds(run.metrics['duration'])} from first arrival to last finish"]
    if gpus is not None:
        parts.append(f"{gpus} GPU{'s' if gpus != 1 else ''}")
    return ", ".join(parts) + "."


def _slo_tile(metrics: dict[str, Any]) -> tuple[str, str, Tone]:
    slo = metrics["slo"]
    if slo["attainment"] is None:
        return "SLO: no requests", UNKNOWN, "plain"
    tone: Tone = "good" if slo["met"] else "bad"
    if not slo["limits"]:
        return f"finished ({share(slo['target'])} wanted, no latency limit)", share(slo["attainment"]), tone
    limits = ", ".join(f"{LATENCIES[name]} ≤ {seconds(limit)}" for name, limit in slo["limits"].items())
    verdict = "SLO met" if slo["met"] else "SLO missed"
    return f"{share(slo['attainment'])} of requests, {share(slo['target'])} wanted: {limits}", verdict, tone


def _count_tiles(numbers: dict[str, float | None]) -> list[tuple[str, str, Tone]]:
    """How many finished, and each other status that occurred."""
    lost = [f"requests.{status}" for status in STATUSES if status != "finished" and numbers[f"requests.{status}"]]
    return [_tile(numbers, "requests.finished"), *(_tile(numbers, name, "bad") for name in lost)]


def _cost_tiles(numbers: dict[str, float | None]) -> list[tuple[str, str, Tone]]:
    """GPUs and energy: in money where prices are known."""
    names = ["cost.per_million_output_tokens", "cost.per_good_request", "cost.total"]
    names = ["gpu_seconds"] if numbers["cost.total"] is None else names
    names += [name for name in _ENERGY_TILES if numbers[name] is not None]
    return [_tile(numbers, name) for name in names]


def _pool_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """One row a pool, or where they are far apart a site, if there are several."""
    cost, energy = metrics["cost"], metrics.get("energy", {})
    rows = []
    kinds = {kind: list({**cost.get(kind, {}), **energy.get(kind, {})}) for kind in ("sites", "pools")}
    for kind, names in kinds.items():
        if kind == "pools" and set(names) == set(kinds["sites"]):
            continue
        costs, drawn = cost.get(kind, {}), energy.get(kind, {})
        if len(names) > 1:
            rows += [[f"{kind[:-1]} {name}", digits(costs.get(name)), joules(drawn.get(name))] for name in names]
    return rows


def _class_table(classes: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and what they are: of each class of requests how it fared where it was placed."""
    rows = [
        [
            name,
            digits(own["requests"]),
            share(own["deadline_hit_rate"]),
            seconds(own["e2e"]["p50"]),
            seconds(own["e2e"]["p99"]),
            ", ".join(f"{site} {digits(count)}" for site, count in own["sites"].items()),
            digits(own["cost"]),
        ]
        for name, own in classes.items()
    ]
    header = ["class", "requests", "deadlines kept", "E2E p50", "E2E p99", "at", "cost"]
    return header, rows, "Each class of requests; a site's cost is shared by tokens."


def _tile(numbers: dict[str, float | None], name: str, tone: Tone = "plain") -> tuple[str, str, Tone]:
    return METRICS[name].label, metric_text(name, numbers[name]), tone


def _value(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    )


def _dotted(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested dictionaries by their dotted keys, as `--set` would name them."""
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    return [leaf for key, inner in value.items() for leaf in _dotted(inner, f"{prefix}.{key}" if prefix else str(key))]
