"""Edge, regional cloud, central cloud: where tasks with deadlines are computed, and what that costs."""

from __future__ import annotations

from typing import Any

from gallery import Exhibit
from scenarios import seconds, share, simulated

CLASSES = ["visual inspection", "device log analysis", "production trend forecast"]
EVERYWHERE = {f"fleet.placement.classes.{name}.site": "central cloud" for name in CLASSES}
HALF = {f"fleet.sites.{site}.replicas": 1 for site in ("edge", "regional cloud", "central cloud")}


def by(policy: str, **more: Any) -> dict[str, Any]:
    return {f"fleet.placement.{key}": value for key, value in {"policy": policy, **more}.items()}


CASES: dict[str, dict[str, Any]] = {
    "all in the central cloud": EVERYWHERE,
    "fixed by class": {},
    "load-aware with spill-over": by("load_aware"),
    "deadline-aware, nearest that keeps it": by("deadline_aware"),
    "deadline-aware, farthest that keeps it": by("deadline_aware", prefer="farthest"),
    "cost-aware": by("cost_aware"),
    "fixed by class, half the GPUs": HALF,
    "cost-aware, half the GPUs": HALF | by("cost_aware"),
    "fixed by class, behind a service mesh": {"fleet.mesh": {}},
}

TEXT = """\
Visual inspection wants its answer within 100 ms, an analysis of device logs within 5 s, a forecast of production within
a minute. The edge is near, small and dear; the central cloud is far and cheap. Shares are of the requests of a class
that kept its deadline.
"""


def run() -> Exhibit:
    rows = []
    for name, settings in CASES.items():
        run = simulated("placement", settings)
        kept = run.metrics["placement"]["classes"]
        hourly = run.metrics["cost"]["total"] / run.metrics["duration"] * 3600
        e2e = kept["visual inspection"]["e2e"]["p99"]
        rows.append(
            (name, *(share(kept[each]["deadline_hit_rate"]) for each in CLASSES), seconds(e2e), f"{hourly:.2f}")
        )
    return Exhibit("Edge, region, cloud", TEXT, ["placement", *CLASSES, "inspection p99", "cost per hour"], rows)
