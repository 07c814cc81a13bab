"""Deadlines, sites and their cost, and transfers, from tables that are known."""

import polars as pl
import pytest
from run_tables import replica_table

from sim.results import placement_metrics, transfer_metrics
from sim.results.recorder import EventRecorder, with_latencies
from sim.results.tables import REQUESTS

REPLICAS = replica_table(
    {"site": "edge", "gpu_hour_price": 3600.0}, {"site": "cloud", "gpu_hour_price": 7200.0, "gpus": 2}
)


def requests(*rows: tuple[int, float | None, int, int]) -> pl.DataFrame:
    """Of (replica, finish, prompt tokens, tokens found in the cache), arrived at 0, with one token of output."""
    known = {"arrival": 0.0, "output_tokens": 1, "preemptions": 0, "first_scheduled": 0.0}
    table = [
        {"request_id": number, "replica": replica, "finish": finish, "first_token": finish, "prompt_tokens": prompt}
        | {"cached_tokens": cached, "status": "failed" if finish is None else "finished"}
        | known
        for number, (replica, finish, prompt, cached) in enumerate(rows)
    ]
    names = dict.fromkeys(["ttft", "tpot", "e2e", "queue"])
    return with_latencies(pl.DataFrame([row | names for row in table], schema=REQUESTS)).select(list(REQUESTS))


def wanted(*rows: tuple[str | None, float | None]) -> pl.DataFrame:
    columns = {"request_id": range(len(rows)), "slo_class": [r[0] for r in rows], "deadline": [r[1] for r in rows]}
    return pl.DataFrame(columns, schema_overrides={"slo_class": pl.String, "deadline": pl.Float64})


def test_classes_and_sites() -> None:
    table = requests((0, 1.0, 9, 0), (0, 3.0, 39, 10), (1, 10.0, 99, 0), (-1, None, 5, 0), (1, 2.0, 9, 0))
    asked = wanted(("a", 1.0), ("a", 2.0), ("b", 20.0), ("a", 1.0), (None, None))
    placed = placement_metrics.with_places(table, asked, REPLICAS)
    assert placed["site"].to_list() == ["edge", "edge", "cloud", None, "cloud"]
    numbers = placement_metrics.compute(placed, REPLICAS)
    assert numbers["deadline_hit_rate"] == 2 / 4  # who failed missed it, who has none is not asked
    a, b, none = (numbers["classes"][name] for name in ("a", "b", "none"))
    assert a["deadline_hit_rate"] == pytest.approx(1 / 3) and a["requests"] == 3 and a["finished"] == 2
    assert a["sites"] == {"edge": 2} and b["sites"] == {"cloud": 1} and none["deadline_hit_rate"] is None
    assert a["e2e"] == {"mean": 2.0, "p50": 2.0, "p99": pytest.approx(2.98)}
    # Ten seconds of one GPU at 1 a second, and of two at 2 a second: 10 and 40; the cloud's by 100 and 10 tokens.
    assert numbers["sites"]["edge"] == {"requests": 2, "gpu_seconds": 10.0, "cost": 10.0, "share": 0.2}
    assert numbers["sites"]["cloud"]["cost"] == 40.0 and numbers["sites"]["cloud"]["gpu_seconds"] == 20.0
    assert a["cost"] == 10.0 and b["cost"] == pytest.approx(40 * 100 / 110)
    assert none["cost"] == pytest.approx(40 * 10 / 110)


def test_without_prices_there_is_no_cost() -> None:
    replicas = replica_table({"site": "edge"})
    placed = placement_metrics.with_places(requests((0, 1.0, 9, 0)), wanted(("a", 1.0)), replicas)
    numbers = placement_metrics.compute(placed, replicas)
    assert numbers["classes"]["a"]["cost"] is None and numbers["sites"]["edge"]["cost"] is None


def test_transfers() -> None:
    events = EventRecorder()
    for request, (moved, waited) in enumerate([(1.0, 2.0), (3.0, 3.0)]):
        events.append(0.0, 1, "kv_transfer", request_id=request, seconds=moved, amount=100, detail="from replica 0")
        events.append(0.0, 1, "joined", request_id=request, seconds=waited, amount=8)
    numbers = transfer_metrics.compute(requests(*[(1, 5.0, 9, 0)] * 4), events.take_table())
    assert numbers["share"] == 0.5 and numbers["bytes"] == 200
    assert numbers["seconds"] == {"mean": 2.0, "p99": pytest.approx(2.98), "max": 3.0}
    assert numbers["wait"]["mean"] == 2.5
    empty = transfer_metrics.compute(requests((0, 1.0, 9, 0)), EventRecorder().take_table())
    assert empty["share"] == 0.0 and empty["seconds"] == {"mean": None, "p99": None, "max": None}
