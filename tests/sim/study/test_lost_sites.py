"""A site that lost all its replicas gets no more requests; where no site is left a request fails at once."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from sim.fleet.placement import PLACEMENTS
from sim.results.folder import Run
from sim.results.metric_names import STATUSES
from sim.study.scenario import make_scenario
from sim.study.simulate import simulate

SCENARIO: dict[str, Any] = {
    "trace": {
        "synth": {
            "requests": 120,
            "arrivals": {"process": "poisson", "rate": 20},
            "lengths": {
                "prompt": {"distribution": "uniform", "low": 300, "high": 2000},
                "output": {"distribution": "uniform", "low": 20, "high": 80},
            },
        }
    },
    "model": "Llama-3.1-8B",
    "profile": "datasheet:h100-sxm-80gb",
    "gpu_hour_price": 3.5,
}
RTT = 0.02
AT = 2.0


def run(policy: str, lost: list[str], *, site: dict[str, Any] | None = None, **fleet: Any) -> Run:
    """Both replicas of each of the sites in `lost` crash at once."""
    sites = {name: {"rtt": RTT, "replicas": 2, **(site or {})} for name in ("near", "far")}
    crash = {"at": AT, "kind": "crash", "replica": 0}
    script = [{**crash, "pool": name} for name in lost for _ in range(2)]
    fleet = {"failures": {"script": script, "restarts": False}, **fleet}
    data = {**SCENARIO, "fleet": {"sites": sites, "placement": {"policy": policy}, **fleet}}
    return simulate(make_scenario(data, {}, Path(), "s.yaml"))


def sent_after(result: Run, time: float) -> pl.DataFrame:
    """Requests that were placed at that time or later."""
    return result.requests.filter(pl.col("arrival") >= time)


@pytest.mark.parametrize("policy", sorted(PLACEMENTS))
@pytest.mark.parametrize("lost", ["near", "far"])
def test_it_is_passed_over(policy: str, lost: str) -> None:
    result = run(policy, [lost])
    later = sent_after(result, AT)
    assert len(later) > 50
    assert set(later["site"]) == {"near", "far"} - {lost}
    assert set(later["status"]) == {"finished"}
    assert result.metrics["requests"]["failed"] == result.metrics["reliability"]["lost"]


@pytest.mark.parametrize("policy", sorted(PLACEMENTS))
def test_without_any_site_a_request_fails_at_once(policy: str) -> None:
    result = run(policy, ["near", "far"])
    counts = result.metrics["requests"]
    assert counts["total"] == 120 == sum(counts[status] for status in STATUSES)
    later = sent_after(result, AT)
    assert set(later["status"]) == {"failed"} and set(later["replica"]) == {-1}
    assert later["site"].null_count() == len(later) > 50
    # Those alone wait for ever that were on their way when the last replica went.
    left = result.requests.filter(status="unfinished")
    assert left.filter((pl.col("arrival") <= AT - RTT / 2) | (pl.col("arrival") >= AT)).is_empty()


def test_its_clients_try_again_as_after_any_failure() -> None:
    retries = {"attempts": 3, "backoff_base": 0.1}
    result = run("load_aware", ["near", "far"], clients={"timeout": 60.0, "retries": retries})
    later = sent_after(result, AT)
    assert set(later["status"]) == {"failed"}
    again = result.events.filter(kind="retried").group_by("request_id").len()
    assert set(later.join(again, on="request_id", how="left")["len"]) == {2}


def test_a_site_that_is_to_have_replicas_again_is_not_lost() -> None:
    """One whose replicas restart, and one that an autoscaler fills again."""
    restarting = run("fixed", ["near"], failures={**_crash("near"), "restart_seconds": 1.0})
    assert set(sent_after(restarting, AT)["site"]) == {"near"}
    assert restarting.metrics["requests"]["unfinished"] == 0
    scaler = {"policy": "schedule", "max": 2, "sync_interval": 1, "steps": [{"at": 0, "replicas": 2}]}
    scaled = run("fixed", ["near"], site={"autoscaler": scaler})
    assert set(sent_after(scaled, AT)["site"]) == {"near"}
    assert scaled.metrics["requests"]["unfinished"] == 0


def _crash(pool: str) -> dict[str, Any]:
    return {"script": [{"at": AT, "kind": "crash", "replica": 0, "pool": pool}] * 2}
