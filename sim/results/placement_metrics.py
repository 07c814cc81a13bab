"""What placement did, in numbers: which deadlines were kept, where requests were served, and what that cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from sim.results.cost import with_paid
from sim.results.spans import run_span

COLUMNS = {"slo_class": pl.String(), "deadline": pl.Float64(), "site": pl.String()}


def with_places(requests: pl.DataFrame, wanted: pl.DataFrame, replicas: pl.DataFrame) -> pl.DataFrame:
    """The requests table with the columns `COLUMNS` after its own. `wanted`: `slo_class` and `deadline` by request_id;
    `replicas`: with the columns of `sim.results.tables.REPLICAS`."""
    placed = requests.join(wanted, on="request_id", how="left", maintain_order="left")
    return placed.join(replicas.select("replica", "site"), on="replica", how="left", maintain_order="left")


def compute(requests: pl.DataFrame, replicas: pl.DataFrame, asleep: pl.DataFrame | None = None) -> dict[str, Any]:
    """`deadline_hit_rate`: of all requests with a deadline, the share that finished within it. `classes`: of each class
    its requests, those finished, the same share, the E2E latency's mean, p50 and p99, how many requests each site had,
    and its cost. `sites`: of each its requests, GPU-seconds and cost, and the cost's share. Null where there is none.

    A site's cost is shared by the classes in proportion to the tokens of their requests there, without those that were
    found in the prefix cache.

    Args:
        requests: table with the columns of `sim.results.tables.REQUESTS` and of `with_places`.
        replicas: table with the columns of `sim.results.tables.REPLICAS`.
        asleep: `sim.results.sleeping.stays` of engines that slept, which cost too.
    """
    first, last = run_span(requests) or (0.0, 0.0)
    paid = with_paid(replicas, first, last, asleep).group_by("site").agg(pl.col("gpu_seconds", "cost").sum())
    prices = replicas.group_by("site").agg(priced=pl.col("gpu_hour_price").is_not_null().all())
    paid = paid.join(prices, on="site").with_columns(cost=pl.when("priced").then("cost"))
    rows = requests.with_columns(
        hit=(pl.col("status") == "finished") & (pl.col("e2e") <= pl.col("deadline")),
        tokens=pl.col("prompt_tokens") - pl.col("cached_tokens") + pl.col("output_tokens"),
        slo_class=pl.col("slo_class").fill_null("none"),
    )
    used = rows.group_by("site", "slo_class").agg(pl.col("tokens").sum())
    shares = used.join(paid, on="site").with_columns(
        part=pl.col("cost") * pl.col("tokens") / pl.col("tokens").sum().over("site")
    )
    cost = paid["cost"].sum() if len(paid) and not paid["cost"].null_count() else None
    return {
        "deadline_hit_rate": _hit_rate(rows),
        "classes": {
            name: _of_class(own, shares.filter(pl.col("slo_class") == name))
            for (name,), own in sorted(rows.partition_by("slo_class", as_dict=True, maintain_order=True).items())
        },
        "sites": {
            row["site"]: {
                "requests": int((rows["site"] == row["site"]).sum()),
                "gpu_seconds": row["gpu_seconds"],
                "cost": row["cost"],
                "share": row["cost"] / cost if cost else None,
            }
            for row in paid.sort("site").iter_rows(named=True)
        },
    }


def _of_class(rows: pl.DataFrame, shares: pl.DataFrame) -> dict[str, Any]:
    latency = np.sort(rows.filter(pl.col("status") == "finished")["e2e"].to_numpy())
    p50, p99 = np.percentile(latency, (50, 99)).tolist() if latency.size else (None, None)
    sites = rows.filter(pl.col("site").is_not_null())["site"].value_counts().sort("site")
    return {
        "requests": len(rows),
        "finished": int(latency.size),
        "deadline_hit_rate": _hit_rate(rows),
        "e2e": {"mean": float(latency.mean()) if latency.size else None, "p50": p50, "p99": p99},
        "sites": dict(sites.iter_rows()),
        "cost": float(np.sort(shares["part"].to_numpy()).sum()) if not shares["part"].null_count() else None,
    }


def _hit_rate(rows: pl.DataFrame) -> float | None:
    wanted = rows.filter(pl.col("deadline").is_not_null())
    return float(wanted["hit"].fill_null(False).sum()) / len(wanted) if len(wanted) else None
