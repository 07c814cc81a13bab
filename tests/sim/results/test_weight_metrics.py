"""The numbers of the weight caches are those of a plain count over the events."""

from typing import Any

import numpy as np
import pytest
from engine_workloads import traces
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_runs import cache_settings, requests_for, run, with_models

from sim.engine.config import EngineConfig
from sim.results.weight_metrics import compute


@settings(max_examples=60, deadline=None)
@given(traces(id_tokens=16), cache_settings(), st.integers(1, 2))
def test_a_plain_count(trace: Any, cache: dict[str, Any], replicas: int) -> None:
    names = ["model-0"] if (cache["capacity_bytes"] or 1000) >= 200 else []
    config = EngineConfig(kv_blocks=100, max_model_len=80)  # some are rejected, and ask for no weights
    result = run(with_models(trace), {**cache, "preload": names}, config=config, replicas=replicas)
    routed = result.requests["replica"].to_list().count(-1)
    loads, size, evictions, hits = 0, 0, 0, len(trace) - routed
    waits = dict.fromkeys((row["request_id"] for row in result.requests.to_dicts() if row["replica"] >= 0), 0.0)
    for row in result.events.to_dicts():
        why = (row["detail"] or " ").split()
        if row["kind"] == "weights_loaded" and why[0] != "preload":
            loads, size = loads + 1, size + row["amount"]
        evictions += row["kind"] == "weights_evicted"
        if row["kind"] == "model_load":
            waits[row["request_id"]] += row["seconds"]
            hits -= why[0] != "behind"
    found = compute(result.requests, result.events)
    assert (found["loads"], found["bytes"], found["evictions"]) == (loads, size, evictions)
    if not waits:
        assert found["hit_rate"] is None and set(found["wait"].values()) == {None}
        return
    assert found["hit_rate"] == pytest.approx(hits / len(waits))
    seconds = list(waits.values())
    assert found["wait"]["mean"] == pytest.approx(sum(seconds) / len(seconds))
    assert found["wait"]["p99"] == pytest.approx(float(np.percentile(seconds, 99)))
    assert found["wait"]["max"] == max(seconds)


def test_by_hand() -> None:
    """a is loaded in 2 s beside b, b again joined; the fourth finds a, the fifth a was evicted for c."""
    rows = (0, "a"), (0, "b"), (1, "b"), (9, "a"), (20, "c"), (30, "b")
    found = compute(
        *(getattr(run(requests_for(*rows), {"capacity_models": 2}), name) for name in ("requests", "events"))
    )
    assert found["loads"] == 4 and found["bytes"] == 400 and found["evictions"] == 2
    assert found["hit_rate"] == pytest.approx(1 / 6)
    assert found["wait"]["max"] == 2.0 and found["wait"]["mean"] == pytest.approx((2 + 2 + 1 + 0 + 1 + 1) / 6)
