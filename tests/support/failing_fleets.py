"""Fleets whose clients give up and try again, and whose replicas crash, come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl
from engine_runs import left_behind
from engine_workloads import LinearStepTimes
from hypothesis import strategies as st
from simpy.events import NORMAL

from sim.engine.config import EngineConfig
from sim.fleet.admission_settings import MaxOutstandingSettings
from sim.fleet.fleet import Fleet, FleetRun
from sim.fleet.pool import Pool
from sim.fleet.reliability.client_settings import ClientSettings
from sim.fleet.reliability.clients import Clients
from sim.fleet.reliability.failure_settings import FailureSettings
from sim.fleet.reliability.failures import Failures
from sim.fleet.replica import ReplicaKind
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World

INSTANTS = st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]) | st.floats(0.0, 3.0)


class FailingRun(NamedTuple):
    run: FleetRun
    ends: Counter[int]  # request_id → how often it ended
    pool: Pool
    clients: Clients | None

    @property
    def statuses(self) -> list[str]:
        return self.run.requests["status"].to_list()


def run_failing(
    trace: pl.DataFrame,
    config: EngineConfig,
    *,
    clients: dict[str, Any] | None = None,
    failures: dict[str, Any] | None = None,
    admission: dict[str, Any] | None = None,
    scaling: Sequence[tuple[float, int, float]] = (),
    replicas: int = 2,
    router: str = "least_outstanding",
    times: Any = None,
    seed: int = 0,
    leap: bool = True,
    weights: Any = None,
) -> FailingRun:
    """`scaling`: at an instant a replica more, which takes so long to start, or (negative count) one drains."""
    kind = ReplicaKind(config, times or LinearStepTimes(), weights=weights)
    ends: Counter[int] = Counter()
    made: dict[str, Any] = {"clients": None}

    def make(world: World, on_end: OnEnd) -> Service:
        def ended(request: Any, status: str) -> None:
            ends[request.request_id] += 1
            on_end(request, status)

        def make_pool(told: OnEnd) -> Pool:
            checked = None if admission is None else MaxOutstandingSettings.model_validate(admission)
            return Pool(world, kind, told, replicas=replicas, router=router, admission=checked)

        service: Service
        if clients is None:
            service = made["pool"] = make_pool(ended)
        else:
            before = made["clients"] = Clients(world, ClientSettings.model_validate(clients), ended)
            made["pool"] = make_pool(before.ended)
            before.serve_by(made["pool"])
            service = before
        if failures is not None:
            Failures(world, FailureSettings.model_validate(failures))
        for time, change, start in scaling:
            world.clock.at(time, NORMAL).callbacks = [
                lambda _, change=change, start=start: scale(world, made["pool"], change, start)
            ]
        return service

    fleet = Fleet(trace, make, seed=seed, leap=leap)
    return FailingRun(fleet.run(), ends, made["pool"], made["clients"])


def scale(world: World, pool: Pool, change: int, start: float) -> None:
    if change > 0:
        replica = pool.begin()

        def join() -> None:
            if replica in pool.starting:
                pool.join(replica)

        world.clock.at(world.clock.now + start, NORMAL).callbacks = [lambda _: join()]
    elif pool.members or pool.starting:
        everybody = [*pool.members, *pool.starting]
        pool.drain(everybody[-change % len(everybody)], "scaled down")


def assert_nothing_is_left(result: FailingRun) -> None:
    """But for requests that nobody is there to serve."""
    pool = result.pool
    held = {request.request_id for request in pool.held}
    statuses = result.statuses
    assert {number for number, status in enumerate(statuses) if status == "unfinished"} == held
    assert not held or not pool.members
    assert not pool._of and not pool.draining
    assert all(load == 0 for load in (*pool.load.requests, *pool.load.tokens))
    for replica in pool.members:
        assert not replica.outstanding
        assert left_behind(replica.engine) == 0
    if result.clients is not None:
        assert set(result.clients._calls) == held
        assert not result.clients._hung_up
        assert result.clients._retrying == sum(call.number > 1 for call in result.clients._calls.values())


@st.composite
def client_settings(draw: st.DrawFn) -> dict[str, Any]:
    limits = st.sampled_from([0.02, 0.1, 0.5, 2.0]) | st.floats(0.01, 3.0)
    ttft = draw(st.none() | limits)
    timeout = draw(st.none() | limits.map(lambda seconds: seconds + (ttft or 0.0)))
    given = {"ttft_timeout": ttft, "timeout": timeout, "deadline": draw(st.none() | limits)}
    given["abort_delay"] = draw(st.sampled_from([0.0, 0.0, 0.03, 0.4]))
    on = ["failed", "shed", *(["timed_out"] if ttft or timeout else [])]
    given["retries"] = {
        "on": draw(st.lists(st.sampled_from(on), min_size=1, unique=True)),
        "attempts": draw(st.integers(2, 4)),
        "backoff_base": draw(st.sampled_from([0.0, 0.05, 0.5])),
        "backoff_max": draw(st.sampled_from([0.1, 1.0])),
        "budget": draw(st.none() | st.just({}) | st.just({"percent": 50.0, "min_concurrency": 0})),
    }
    if draw(st.booleans()) and any(given[name] for name in ("ttft_timeout", "timeout", "deadline")):
        given["retries"] = None
    return given


@st.composite
def failure_settings(draw: st.DrawFn) -> dict[str, Any]:
    crash = st.fixed_dictionaries(
        {"kind": st.just("crash"), "at": INSTANTS, "replica": st.just("any") | st.integers(0, 2)}
    )
    slow = st.fixed_dictionaries(
        {
            "kind": st.just("slow"),
            "at": INSTANTS,
            "factor": st.sampled_from([1.0, 2.0, 8.0]),
            "duration": st.none() | st.sampled_from([0.05, 0.5]),
        }
    )
    random = st.sampled_from(
        [
            {"kind": "crash", "mtbf": 0.5},
            {"kind": "crash", "mtbf": 5.0},
            {"kind": "slow", "mtbf": 0.5, "factor": 3.0, "duration": 0.2},
            {"kind": "slow", "mtbf": 1.0, "factor": 2.0, "duration": {"mean": 0.3, "deviation": 0.3}},
        ]
    )
    given: dict[str, Any] = {
        "script": draw(st.lists(crash | slow, max_size=4)),
        "random": draw(st.lists(random, max_size=2)),
        "restarts": draw(st.sampled_from([True, True, False])),
        "restart_seconds": draw(st.sampled_from([0.0, 0.1, 1.0]) | st.just({"mean": 0.3, "deviation": 0.2})),
        "failover": draw(st.sampled_from(["none", "before_first_token", "all"])),
        "failover_limit": draw(st.integers(1, 3)),
    }
    if not given["restarts"]:
        del given["restart_seconds"]
    if given["failover"] == "none":
        del given["failover_limit"]
    if not given["script"] and not given["random"]:
        given["random"] = [{"kind": "crash", "mtbf": 1.0}]
    return given
