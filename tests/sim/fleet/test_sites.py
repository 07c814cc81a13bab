"""Sites far apart: a request is served where it was sent, nothing is lost, no estimate keeps what has gone."""

from functools import partial
from typing import Any

import polars as pl
from engine_workloads import LinearStepTimes, configs, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from simpy.events import NORMAL

from sim.engine.config import EngineConfig
from sim.engine.request import Request
from sim.fleet.fleet import Fleet, FleetRun
from sim.fleet.links.network import Network
from sim.fleet.placement import PLACEMENTS
from sim.fleet.placement.placement import PlacementSetting, Task
from sim.fleet.places.hop import Hop
from sim.fleet.places.site_estimate import ExpectedOutput, SiteEstimate
from sim.fleet.places.sites import Sites
from sim.fleet.places.wide_area import Payload, WideArea
from sim.fleet.pool import Pool
from sim.fleet.replica import ReplicaKind
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World

TIMES = LinearStepTimes()


@st.composite
def places(draw: st.DrawFn) -> list[dict[str, Any]]:
    count = draw(st.integers(1, 3))
    return [
        {
            "rtt": draw(st.sampled_from([0.0, 0.01, 0.3])),
            "up": draw(st.sampled_from([None, 50.0, 1e4])),
            "down": draw(st.sampled_from([None, 100.0])),
            "replicas": draw(st.integers(1, 2)),
        }
        for _ in range(count)
    ]


class Leaving:
    """Before sites: clients go at given times."""

    def __init__(self, world: World, sites: Sites, gone: dict[int, float]) -> None:
        self.sites = sites
        self.gone: set[int] = set()
        self.open: dict[int, Request] = {}
        for number, time in gone.items():
            event = world.clock.at(time, NORMAL)
            event.callbacks = [lambda _, number=number: self._leave(number)]

    def submit(self, request: Request) -> None:
        self.open[request.request_id] = request
        self.sites.submit(request)

    def abort(self, request: Request) -> None:
        self.sites.abort(request)

    def close(self, end: float) -> None:
        self.sites.close(end)

    def pool(self, site: int) -> Pool:
        pool = self.sites.hops[site].inner
        assert isinstance(pool, Pool)
        return pool

    def _leave(self, number: int) -> None:
        if request := self.open.pop(number, None):
            self.gone.add(number)
            self.sites.abort(request)


def run(
    trace: pl.DataFrame,
    config: EngineConfig,
    drawn: list[dict[str, Any]],
    policy: str,
    gone: dict[int, float],
    *,
    lost: dict[int, float] | None = None,
    leap: bool = True,
) -> tuple[FleetRun, Leaving]:
    """`gone`: which client goes when; `lost`: which site loses all its replicas when."""
    kind = ReplicaKind(config, TIMES, gpu_hour_price=1.0)

    def make(world: World, on_end: OnEnd) -> Service:
        network = Network(world.clock)
        expected = ExpectedOutput(lambda _: 10)
        estimates, hops = [], []
        ended: list[Leaving] = []
        for number, place in enumerate(drawn):
            ready = partial(int, place["replicas"])
            name, payload = f"site {number}", Payload(1.0, 2.0, number % 2 == 0, lambda _: 5)
            network_of = {key: place[key] for key in ("rtt", "up", "down")}
            route = WideArea(world.clock, network, name, payload, **network_of)
            prices = {"gpus": 1, "gpu_hour_price": 1.0 + number, "capacity": None}
            empty = partial(_is_empty, ended, number)
            estimates.append(
                SiteEstimate(world.clock, route, config, TIMES, expected, replicas=ready, gone=empty, **prices)
            )
            pool = partial(Pool, world, kind, replicas=place["replicas"], name=name, site=name)
            hops.append(partial(_hop, world, route, pool))

        def told(request: Request, status: str) -> None:
            ended[0].open.pop(request.request_id)
            on_end(request, status)

        placement = PLACEMENTS[policy](PlacementSetting())
        tasks = lambda request_id: Task(f"class {request_id % 2}", 0.5 + request_id % 3, None)  # noqa: E731
        sites = Sites(placement, estimates, hops, tasks, expected, told)
        ended.append(Leaving(world, sites, gone))
        for number, time in (lost or {}).items():
            world.clock.at(time, NORMAL).callbacks = [lambda _, number=number: _crash(ended[0].pool(number))]
        return ended[0]

    fleet = Fleet(trace, make, leap=leap)
    result = fleet.run()
    assert isinstance(fleet.service, Leaving)
    return result, fleet.service


def _is_empty(ended: list[Leaving], site: int) -> bool:
    return not ended[0].pool(site).members


def _crash(pool: Pool) -> None:
    for replica in list(pool.members):
        pool.crash(replica)


def _hop(world: World, route: WideArea, pool: Any, on_end: OnEnd) -> Hop:
    return Hop(world, route, lambda ended: pool(on_end=ended), on_end)


@settings(max_examples=120, deadline=None)
@given(
    configs(block_size=4),
    traces(),
    places(),
    st.sampled_from(sorted(PLACEMENTS)),
    st.dictionaries(st.integers(0, 29), st.floats(0, 4), max_size=8),
)
def test_nothing_is_lost_or_left_behind(
    config: EngineConfig, trace: pl.DataFrame, drawn: list[dict[str, Any]], policy: str, gone: dict[int, float]
) -> None:
    result, before = run(trace, config, drawn, policy, gone)
    requests = result.requests.join(result.replicas.select("replica", "site"), on="replica", how="left")
    for number, status in requests.select("request_id", "status").iter_rows():
        assert status == ("unfinished" if number in before.gone else "finished")
    hops = result.events.filter(pl.col("kind") == "hop")
    for row in requests.filter(pl.col("status") == "finished").iter_rows(named=True):
        own = hops.filter(pl.col("request_id") == row["request_id"])
        assert own["detail"].to_list() == [f"to {row['site']}", f"from {row['site']}"]
        assert row["queue"] >= own["seconds"][0] - 1e-9
        place = drawn[int(row["site"].removeprefix("site "))]
        assert row["ttft"] >= place["rtt"] - 1e-9 and row["first_token"] <= row["finish"]
    assert not before.open and not before.sites._of
    for estimate, hop in zip(before.sites._estimates, before.sites.hops, strict=True):
        assert estimate.outstanding == 0 and not estimate._predicted
        assert not hop._going and not hop._coming


@settings(max_examples=60, deadline=None)
@given(
    configs(block_size=4),
    traces(),
    places(),
    st.sampled_from(sorted(PLACEMENTS)),
    st.dictionaries(st.integers(0, 29), st.floats(0, 4), max_size=4),
    st.dictionaries(st.integers(0, 2), st.floats(0, 3), min_size=1),
)
def test_sites_that_are_lost_get_nothing_more_and_keep_nothing(
    config: EngineConfig,
    trace: pl.DataFrame,
    drawn: list[dict[str, Any]],
    policy: str,
    gone: dict[int, float],
    lost: dict[int, float],
) -> None:
    lost = {number: time for number, time in lost.items() if number < len(drawn)}
    result, before = run(trace, config, drawn, policy, gone, lost=lost)
    pools = [before.pool(number) for number in range(len(drawn))]
    held = {request.request_id: number for number, pool in enumerate(pools) for request in pool.held}
    for row in result.requests.iter_rows(named=True):
        number, arrival = row["request_id"], row["arrival"]
        left = number in before.gone or number in held
        assert (row["status"] == "unfinished") == left and row["status"] in ("finished", "failed", "unfinished")
        if len(lost) == len(drawn) and arrival > max(lost.values()):
            assert row["status"] == "failed" and row["replica"] == -1
        elif number in held:
            assert arrival <= lost[held[number]]  # it was on its way, which no policy can know
    assert set(before.open) == set(held) == set(before.sites._of)
    for estimate, pool in zip(before.sites._estimates, pools, strict=True):
        assert estimate.outstanding == len(estimate._predicted) == len(pool.held) and not pool._of


@settings(max_examples=40, deadline=None)
@given(configs(block_size=4), traces(), places(), st.sampled_from(sorted(PLACEMENTS)))
def test_leap_equals_step(config: EngineConfig, trace: pl.DataFrame, drawn: list[dict[str, Any]], policy: str) -> None:
    leapt, stepped = (run(trace, config, drawn, policy, {}, leap=leap)[0] for leap in (True, False))
    assert_frame_equal(leapt.requests, stepped.requests, check_exact=True)
