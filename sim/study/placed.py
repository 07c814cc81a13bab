"""From a scenario's `fleet.sites` to the service of sites far apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import polars as pl

from calibrate.latency import StepLatency
from ground.assumption import Assumption
from sim.fleet.links.network import Network
from sim.fleet.placement import PLACEMENTS
from sim.fleet.placement.placement import PlacementSetting
from sim.fleet.places.hop import Hop
from sim.fleet.places.placement_settings import ClassSettings, PlacementSettings, SiteSettings
from sim.fleet.places.site_estimate import ExpectedOutput, SiteEstimate
from sim.fleet.places.sites import Sites, Tasks
from sim.fleet.places.wide_area import Payload, WideArea
from sim.fleet.pool import Pool
from sim.fleet.service import Service
from sim.fleet.world import OnEnd, World
from sim.study.asked_times import AskedTimes
from sim.study.deployment import deploy
from sim.study.disaggregated import Parts
from sim.study.pool_parts import PoolParts, kv_blocks_of
from sim.study.pool_scenario import of_pool, pool_scenario
from sim.study.pools import pools_of
from sim.study.scaling import Scaling
from sim.study.scenario import Scenario
from traces.table import Trace

_UNKNOWN = ClassSettings()


def deadlines(placement: PlacementSettings, requests: pl.DataFrame) -> pl.DataFrame:
    """Of each request, in order of request_id: `slo_class`, and `deadline`, the placement's own or else the trace's."""
    requests = requests.sort("request_id")
    empty = {"slo_class": pl.lit(None, pl.String), "deadline": pl.lit(None, pl.Float64)}
    requests = requests.with_columns(**{name: null for name, null in empty.items() if name not in requests.columns})
    own = {name: each.deadline for name, each in placement.classes.items() if each.deadline is not None}
    set_here = pl.col("slo_class").replace_strict(own, default=None, return_dtype=pl.Float64)
    return requests.select("request_id", "slo_class", deadline=pl.coalesce(set_here, "deadline"))


def placed(scenario: Scenario, trace: Trace) -> Parts:
    """What `sim.study.services.Serving` holds.

    Raises:
        UserError: no request is of a class, a class names no site, a price is missing, or a request can never run.
    """
    fleet = scenario.fleet
    placement = fleet.placement or PlacementSettings()
    keys = pools_of(fleet)
    scenarios = {key: pool_scenario(scenario, key, settings) for key, settings in keys.items()}
    wanted = deadlines(placement, trace.requests)
    classes = wanted["slo_class"].to_list()
    placement.check(fleet.sites, set(classes) - {None}, all(own.gpu_hour_price for own in scenarios.values()))
    pools = [
        PoolParts(own, trace, own.engine, deploy(own), gpu_hour_price=own.gpu_hour_price) for own in scenarios.values()
    ]
    scalings = [
        Scaling(own, own.engine, parts.deployment, key)
        for (key, own), parts in zip(scenarios.items(), pools, strict=True)
    ]
    assumptions: list[Assumption] = []
    for key, parts, scaling in zip(keys, pools, scalings, strict=True):
        assumptions += of_pool(key, [*parts.assumptions, *scaling.assumptions])
    assumptions += placement.assumptions()
    extra = {name: each.request_bytes for name, each in placement.classes.items()}
    payload = Payload(
        placement.prompt_token_bytes,
        placement.output_token_bytes,
        placement.stream,
        lambda request_id: extra.get(classes[request_id], 0),
    )
    named_sites = {name: each.site for name, each in placement.classes.items() if each.site is not None}
    tasks = Tasks(classes, wanted["deadline"].to_list(), named_sites)

    def make(world: World, on_end: OnEnd) -> Service:
        network = Network(world.clock)
        world.networks.append(network)
        expected = ExpectedOutput(lambda name: placement.classes.get(name or "", _UNKNOWN).expected_output)
        estimates: list[SiteEstimate] = []
        hops: list[Callable[[OnEnd], Hop]] = []
        for (name, site), parts, scaling in zip(fleet.sites.items(), pools, scalings, strict=True):
            route = WideArea(world.clock, network, name, payload, rtt=site.rtt, up=site.up, down=site.down)
            times = parts.deployment.step_times
            pool = _pool(world, name)
            estimates.append(_estimate(world, route, site, parts, times, expected, pool))
            hops.append(_hop(world, scenario, name, site, parts, route, scaling))
        policy = PLACEMENTS[placement.policy](PlacementSetting(placement.threshold, placement.margin, placement.prefer))
        return Sites(policy, estimates, hops, tasks, expected, on_end)

    return make, pools, kv_blocks_of(pools, fleet.sites.values()), assumptions


def _pool(world: World, name: str) -> Callable[[], Pool]:
    """Gives the pool of a site, which is not there yet."""

    @cache
    def pool() -> Pool:
        return next(pool for pool in world.pools if pool.name == name)

    return pool


def _estimate(
    world: World,
    route: WideArea,
    site: SiteSettings,
    parts: PoolParts,
    times: StepLatency,
    expected: ExpectedOutput,
    pool: Callable[[], Pool],
) -> SiteEstimate:
    def gone() -> bool:
        """An autoscaler asks for replicas where there are none."""
        return site.autoscaler is None and not pool().members and not pool().starting

    return SiteEstimate(
        world.clock,
        route,
        parts.deployment.config,
        AskedTimes(times),
        expected,
        replicas=lambda: len(pool().members),
        gone=gone,
        gpus=parts.kind.gpus,
        gpu_hour_price=parts.kind.gpu_hour_price,
        capacity=site.capacity,
    )


def _hop(
    world: World,
    scenario: Scenario,
    name: str,
    site: SiteSettings,
    parts: PoolParts,
    route: WideArea,
    scaling: Scaling,
) -> Callable[[OnEnd], Hop]:
    def pool(on_end: OnEnd) -> Pool:
        return Pool(
            world,
            parts.kind,
            on_end,
            replicas=site.replicas,
            router=site.router,
            routing=site.routing,
            admission=scenario.fleet.admission,
            name=name,
            site=name,
        )

    return lambda on_end: Hop(world, route, lambda ended: scaling.serve(world, ended, pool), on_end)
